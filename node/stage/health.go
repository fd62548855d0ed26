package stage

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// checkFresh is how long the answer of a device counts. A pull asks for many layers of a disk in one second; and a
	// read from the device costs up to a millisecond on a cloud's disk.
	checkFresh = time.Second
	// checkWait is how long a device may take to answer before the disk counts as broken. Healthy ones take
	// milliseconds.
	checkWait = 3 * time.Second
)

// health looks at a disk at most once at a time, so that a device that hangs costs one goroutine and not one for each
// caller.
type health struct {
	mu      sync.Mutex
	checked time.Time
	running *look
}

// look is one check under way.
type look struct {
	done chan struct{}
	err  error
}

// check runs at, which is cheap as long as the device answers, each time, and device if the last good answer is too
// old.
func (h *health) check(ctx context.Context, device, at func() error) error {
	h.mu.Lock()
	stale := time.Since(h.checked) >= checkFresh
	if !stale && h.running == nil {
		h.mu.Unlock()
		return answer(ctx, at)
	}
	l := h.running
	if l == nil {
		l = &look{done: make(chan struct{})}
		h.running = l
		go h.run(l, device)
	}
	h.mu.Unlock()

	err := answer(ctx, func() error {
		<-l.done
		return l.err
	})
	if err != nil {
		return err
	}
	return answer(ctx, at)
}

// answer waits for the answer of a device, which may never come.
func answer(ctx context.Context, question func() error) error {
	return awaitFor(ctx, checkWait, question)
}

// recheck asks the device, whatever it answered before; an answer to a question that was asked before now does not
// count.
func (h *health) recheck(ctx context.Context, device func() error) error {
	for {
		h.mu.Lock()
		h.checked = time.Time{}
		old := h.running != nil
		h.mu.Unlock()
		if err := h.check(ctx, device, func() error { return nil }); err != nil || !old {
			return err
		}
	}
}

// run ends when the device answers. One that never does keeps it for good: the kernel lets nobody interrupt such a
// read.
func (h *health) run(l *look, device func() error) {
	l.err = device()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running = nil
	if l.err == nil {
		h.checked = time.Now()
	}
	close(l.done)
}

// Check asks the disk's device now whether it still is what was proved. A disk that does not answer, or answers
// otherwise, is taken out of service, as Acquire does; that is the error. A disk that does not serve is not asked. An
// unknown name is errdefs.ErrNotFound.
func (s *Stager) Check(ctx context.Context, name string) error { return s.inspector.recheck(ctx, name) }

// inspector looks at disks and takes those out of service that do not answer.
type inspector struct {
	*state
	shared shared
}

// recheck is Check.
func (s *inspector) recheck(ctx context.Context, name string) error {
	s.mu.Lock()
	d := s.fleet.byName[name]
	if d == nil {
		s.mu.Unlock()
		return fmt.Errorf("check disk %s: no such disk: %w", name, errdefs.ErrNotFound)
	}
	up, since, rec := d.up, d.upSince, d.rec
	s.mu.Unlock()
	if !up {
		return nil
	}
	start := time.Now()
	err := d.health.recheck(ctx, func() error { return s.system.CheckDevice(rec.Device, rec.DeviceNumber, rec.Identity) })
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("check disk %s: %w", name, ctx.Err())
	}
	s.observer.StepDone(StepCheck, time.Since(start), err)
	s.brokenSince(ctx, d, since, err)
	return fmt.Errorf("check disk %s: %w", name, err)
}

// check says whether the disk still is what was proved, and the layer's directory can be read.
func (s *inspector) check(ctx context.Context, d *disk, dir string) error {
	rec := s.shared.record(d)
	start := time.Now()
	err := d.health.check(ctx,
		func() error { return s.system.CheckDevice(rec.Device, rec.DeviceNumber, rec.Identity) },
		func() error { return s.system.CheckDir(dir) })
	if err != nil && ctx.Err() == nil {
		s.observer.StepDone(StepCheck, time.Since(start), err)
	}
	return err
}
