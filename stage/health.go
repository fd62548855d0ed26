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
	// checkWait is how long a device may take to answer before the disk counts as broken. Healthy ones take milliseconds.
	checkWait = 3 * time.Second
)

// health looks at a disk at most once at a time, so that a device that hangs costs one goroutine and not one for each caller.
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

// check runs at, which is cheap, each time, and device if the last good answer is too old.
func (h *health) check(ctx context.Context, device, at func() error) error {
	h.mu.Lock()
	stale := time.Since(h.checked) >= checkFresh
	if !stale && h.running == nil {
		h.mu.Unlock()
		return at()
	}
	l := h.running
	if l == nil {
		l = &look{done: make(chan struct{})}
		h.running = l
		go h.run(l, device)
	}
	h.mu.Unlock()

	timer := time.NewTimer(checkWait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("the device has not answered for %s: %w", checkWait, errdefs.ErrUnavailable)
	case <-l.done:
	}
	if l.err != nil {
		return l.err
	}
	return at()
}

// run ends when the device answers. One that never does keeps it for good: the kernel lets nobody interrupt such a read.
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

// check says whether the disk still is what was proved, and the layer's directory can be read.
func (s *finder) check(ctx context.Context, d *disk, dir string) error {
	rec := s.record(d)
	start := time.Now()
	err := d.health.check(ctx,
		func() error { return s.system.CheckDevice(rec.Device, rec.DeviceNumber, rec.Identity) },
		func() error { return s.system.CheckDir(dir) })
	if err != nil && ctx.Err() == nil {
		s.observer.StepDone(StepCheck, time.Since(start), err)
	}
	return err
}
