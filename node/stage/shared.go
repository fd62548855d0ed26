package stage

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
)

// shared is what all parts do with the state of a disk.
type shared struct {
	*state
}

// failed notes why the disk is not where it should be and when to try again.
func (s shared) failed(d *disk, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.err = cause
	d.retryAt = time.Now().Add(retryAfter(d.failures))
	d.failures++
	d.pendingSince = time.Time{}
	s.fleet.updateTables(d)
	s.wake()
}

// put journals a change of the disk's record. Only who holds the disk's key calls it.
func (s shared) put(d *disk, change func(*record)) error {
	rec := s.record(d)
	step := rec.Step
	change(&rec)
	if rec.Step != step {
		rec.Since = time.Now()
	}
	s.failpoint("before " + string(rec.Step))
	if err := s.journal.put(rec); err != nil {
		return err
	}
	s.mu.Lock()
	d.rec, d.journalled = rec, true
	s.mu.Unlock()
	s.failpoint("after " + string(rec.Step))
	return nil
}

func (s shared) record(d *disk) record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.rec
}

func (s shared) isJournalled(d *disk) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.journalled
}

func (s shared) isUp(d *disk) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.up
}

func (s shared) observed(step Step, do func() error) error {
	start := time.Now()
	err := do()
	s.observer.StepDone(step, time.Since(start), err)
	return err
}

// ready refuses what may only be asked between Restore and Close. The caller holds mu.
func (s shared) ready() error {
	if s.closed {
		return fmt.Errorf("the stage is closed: %w", errdefs.ErrUnavailable)
	}
	if !s.restored {
		return fmt.Errorf("disks are not restored yet: %w", errdefs.ErrUnavailable)
	}
	return nil
}

// failpoint is where a test can stop everything, as a crash would.
func (s shared) failpoint(point string) {
	if s.crash != nil {
		s.crash(point)
	}
}

// wait until cond, which is called with mu held, after changes of the fleet.
func (s shared) wait(ctx context.Context, cond func() bool) error {
	for {
		s.mu.Lock()
		met, change, closed := cond(), s.fleet.change, s.closed
		s.mu.Unlock()
		if met {
			return nil
		}
		if closed {
			return fmt.Errorf("the stage is closed: %w", errdefs.ErrUnavailable)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
		}
	}
}

// wake makes the background loop look at all disks.
func (s shared) wake() {
	select {
	case s.kick <- struct{}{}:
	default: // a wake-up is waiting already
	}
}

// driver of a disk.
func (s shared) driver(d *disk) (blockdev.Attacher, error) {
	name := s.record(d).Spec.Driver
	driver, ok := s.drivers[name]
	if !ok {
		return nil, fmt.Errorf("no driver %q here, configure it or restart with the configuration that had it: %w", name, errdefs.ErrInvalidArgument)
	}
	return driver, nil
}
