package lifecycle

import (
	"context"
	"time"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
)

// aging ends the lives of image snapshots.
type aging struct {
	matches *matches
	times   Times
}

// age does what is due by the clock for an image snapshot that no work is under way for.
func (a *aging) age(_ context.Context, j *job) (decision, error) {
	s, now := j.object, time.Now().UTC()
	v := policy.Age(s, now, a.matches.lastUse(s), a.times.UnusedAutomatic)
	switch v.Fate {
	case policy.Retire:
		return a.retire(s, now, v)
	case policy.Delete:
		return write(), markDeleted(s, now, v.Reason, v.Message)
	case policy.Keep:
	}
	return wait(at(v.Until)), nil
}

// retire makes it unavailable, so that nodes no longer choose it, and lets it expire, to be deleted, a little later
// (Q11).
func (a *aging) retire(s *imagesnapshot.ImageSnapshot, now time.Time, v policy.Verdict) (decision, error) {
	if err := s.SetPhase(imagesnapshot.PhaseUnavailable, v.Reason, v.Message); err != nil {
		return decision{}, err
	}
	s.Status.Expires = now.Add(a.times.ExpiredGrace)
	s.AddEvent(now, imagesnapshot.EventNormal, v.Reason, v.Message)
	d := write()
	d.told = func(o Observer) { o.Ended(EndingExpired, v.Reason) }
	return d, nil
}
