package lifecycle

import (
	"context"
	"fmt"
	"time"

	"berth.dev/berth/imagesnapshot"
)

const day = 24 * time.Hour

// setExpiry follows from the retention: so many days after what is there became usable.
func setExpiry(s *imagesnapshot.ImageSnapshot) {
	s.Status.Expires = time.Time{}
	if days := s.Spec.RetentionDays; days > 0 {
		s.Status.Expires = s.Status.Ready.Add(time.Duration(days) * day)
	}
}

// age does what time demands of an image snapshot that nothing is under way for.
func (r *run) age(ctx context.Context, s *imagesnapshot.ImageSnapshot) (time.Time, bool, error) {
	now := time.Now().UTC()
	expires := s.Status.Expires
	expired := !expires.IsZero() && !now.Before(expires)
	switch s.Status.Phase {
	case imagesnapshot.PhaseFailed, imagesnapshot.PhaseUnavailable:
		if !expired {
			return expires, true, nil
		}
		if err := r.markDeleted(s, imagesnapshot.ReasonKeptLongEnough, fmt.Sprintf("%s since %s", s.Status.Reason, s.Status.LastUpdated.Format(time.RFC3339))); err != nil {
			return time.Time{}, true, err
		}
		return time.Time{}, false, r.put(ctx, s)
	case imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdateFailed:
	default:
		return time.Time{}, true, nil
	}
	if expired {
		return time.Time{}, false, r.retire(ctx, s, imagesnapshot.ReasonExpired, fmt.Sprintf("its %d days are over", s.Spec.RetentionDays))
	}
	next := expires
	if s.Origin == imagesnapshot.OriginAutomatic {
		// Q8: never used, so long after it was made; used, so long after the last time.
		unused := r.lastUse(s).Add(r.Times.UnusedAutomatic)
		if !now.Before(unused) {
			return time.Time{}, false, r.retire(ctx, s, imagesnapshot.ReasonUnused,
				fmt.Sprintf("made automatically and not used for %s", r.Times.UnusedAutomatic))
		}
		next = earlier(next, unused)
	}
	return next, true, nil
}

// retire makes it unavailable, so that nodes choose it no more, and has it deleted a little later (Q11).
func (r *run) retire(ctx context.Context, s *imagesnapshot.ImageSnapshot, reason imagesnapshot.Reason, message string) error {
	now := time.Now().UTC()
	if err := s.SetPhase(imagesnapshot.PhaseUnavailable, reason, message); err != nil {
		return err
	}
	s.Status.Expires = now.Add(r.Times.ExpiredGrace)
	s.AddEvent(now, imagesnapshot.EventNormal, reason, message)
	if err := r.put(ctx, s); err != nil {
		return err
	}
	r.Observer.Ended(EndingExpired, reason)
	return nil
}

// lastUse knows of matches that are not written yet.
func (r *run) lastUse(s *imagesnapshot.ImageSnapshot) time.Time {
	last := lastUse(s)
	r.matches.mu.Lock()
	defer r.matches.mu.Unlock()
	if m := r.matches.counts[s.Name]; m != nil && m.id == s.ID && m.last.After(last) {
		last = m.last
	}
	return last
}
