package stage

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/log"

	"berth.dev/berth/internal/backoff"
)

const (
	// firstRetry and mostRetry bound the wait between attempts: soon enough for a disk that a reboot brings late,
	// seldom enough for one that never comes.
	firstRetry = time.Second
	mostRetry  = time.Minute
	// attemptWait bounds one attempt in the background: what a storage takes longer for, the next attempt finds done,
	// and meanwhile others have their turn.
	attemptWait = 10 * time.Minute
	// atOnce bounds the disks that are worked on at the same time in the background.
	atOnce = 8
)

// retryAfter is the wait after an attempt that failed, with that many failures before it.
func retryAfter(failures int) time.Duration {
	return backoff.Doubling{First: firstRetry, Most: mostRetry}.After(failures)
}

// keeper works in the background.
type keeper struct {
	*state
	shared   shared
	raising  *raising
	lowering *lowering
	// idleTimeout is Config.IdleTimeout.
	idleTimeout time.Duration
	// done is closed when the loop has ended.
	done chan struct{}
}

// loop works on disks that are not where they should be, and lets idle ones go, until ctx ends.
func (s *keeper) loop(ctx context.Context) {
	defer close(s.done)
	var workers sync.WaitGroup
	defer workers.Wait()
	slots := make(chan struct{}, atOnce)
	for {
		due, next := s.due(time.Now())
		for _, d := range due {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				s.unlock(d)
				continue
			}
			workers.Go(func() {
				defer func() { <-slots }()
				defer s.unlock(d)
				s.maintain(ctx, d)
			})
		}
		if !s.sleep(ctx, next) {
			return
		}
	}
}

// sleep until next, a wake-up, or the end; next zero is no time at all.
func (s *keeper) sleep(ctx context.Context, next time.Time) bool {
	var alarm <-chan time.Time
	if !next.IsZero() {
		timer := time.NewTimer(time.Until(next))
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-s.kick:
	case <-alarm:
	}
	return ctx.Err() == nil
}

// due returns the disks to work on now, with their keys held, and when to look again.
func (s *keeper) due(now time.Time) (due []*disk, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.fleet.byName {
		at, ok := s.dueAt(d)
		if !ok {
			continue
		}
		if at.After(now) {
			if next.IsZero() || at.Before(next) {
				next = at
			}
			continue
		}
		// Whoever has the key now wakes us when giving it back.
		if d.key.tryLock() {
			due = append(due, d)
		}
	}
	return due, next
}

// dueAt is when something is to be done with the disk, if anything.
func (s *keeper) dueAt(d *disk) (time.Time, bool) {
	switch {
	case d.removed || !d.journalled:
		return time.Time{}, false // a call of Stage is at it
	case d.rec.Goal == goalGone, !d.up:
		return d.retryAt, true
	case !s.reconciled || s.fleet.holders(d) > 0:
		return time.Time{}, false
	case d.rec.Draining:
		return time.Time{}, true
	case d.rec.Spec.Keep || s.idleTimeout == 0:
		return time.Time{}, false
	}
	return s.fleet.idleSince(d).Add(s.idleTimeout), true
}

// maintain does what is due. The key is held.
func (s *keeper) maintain(ctx context.Context, d *disk) {
	s.mu.Lock()
	at, ok := s.dueAt(d)
	if !ok || at.After(time.Now()) {
		s.mu.Unlock()
		return
	}
	down := d.rec.Goal == goalGone || d.up
	if down {
		s.fleet.stopServing(d) // in the same breath as it was found unheld
	}
	attempt, abort := context.WithTimeout(ctx, attemptWait)
	defer abort()
	d.abort = abort
	s.mu.Unlock()
	var err error
	if down {
		err = s.lowering.lower(attempt, d)
	} else {
		err = s.raising.raise(attempt, d)
	}
	s.mu.Lock()
	d.abort = nil
	s.mu.Unlock()
	if err == nil {
		return
	}
	s.shared.failed(d, err)
	if ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("disk", s.shared.record(d).Spec.Name).Warn("layer disk is not where it should be, it will be tried again")
	}
}

// unlock gives the disk's key back and lets the loop look at it again.
func (s *keeper) unlock(d *disk) {
	d.key.unlock()
	s.shared.wake()
}
