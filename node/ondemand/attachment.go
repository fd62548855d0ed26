package ondemand

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/node/stage"
)

// attachment is one disk on its way.
type attachment struct {
	item    *item
	started time.Time
	// room says that the disk counts among those of the node; Chooser.mu guards it.
	room bool
	// done is closed at the end; err is the outcome then.
	done chan struct{}
	err  error
}

// errNoRoom says that no disk can make room.
var errNoRoom = fmt.Errorf("as many layer disks as allowed are attached, and all of them are in use, kept or just attached: %w", errdefs.ErrResourceExhausted)

// leaveTimeout bounds letting go of a disk; what fails on the way goes on in the stage.
const leaveTimeout = time.Minute

// wait until the disk is there or has been waited for long enough, by whoever it was.
func (a *attachment) wait(ctx context.Context, most time.Duration) DiskResult {
	timer := time.NewTimer(most - time.Since(a.started))
	defer timer.Stop()
	r := DiskResult{Name: a.item.name, ID: a.item.id, Disk: a.item.disk}
	select {
	case <-a.done: // first of all, also if the time is over
	default:
		select {
		case <-a.done:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	select {
	case <-a.done:
		r.Result, r.Err = resultOf(a.err), a.err
	default:
		r.Result = ResultLate
	}
	return r
}

func resultOf(err error) Result {
	switch {
	case err == nil:
		return ResultReady
	case errors.Is(err, errNoRoom):
		return ResultNoRoom
	}
	return ResultFailed
}

// run attaches one disk.
func (c *Chooser) run(ctx context.Context, a *attachment, spec stage.Spec) {
	err := c.makeRoom(ctx, a)
	if err == nil {
		_, err = c.Stage.Stage(ctx, spec)
	}
	now := time.Now()
	c.mu.Lock()
	delete(c.pending, spec.Name)
	it := a.item
	switch {
	case err == nil:
		it.succeeded()
		c.fresh[spec.Name] = now
	case errors.Is(err, errNoRoom) || ctx.Err() != nil:
		// not the disk's fault
	default:
		it.failed(now, err)
		if c.items[it.id] == it {
			c.touched[it.id] = it
		}
	}
	if c.items[it.id] != it && err == nil && !c.closed {
		c.leave(spec.Name) // withdrawn meanwhile
	}
	c.mu.Unlock()
	defer close(a.done)
	a.err = err
	took := now.Sub(a.started)
	c.Observer.Attached(resultOf(err), took)
	entry := log.G(ctx).WithField("disk", spec.Name).WithField("took", took)
	if err != nil {
		entry.WithError(err).Warn("layer disk that a pull needs is not attached")
		return
	}
	entry.Info("layer disk is attached for pulls")
}

// makeRoom lets idle disks go until there is room for one more.
func (c *Chooser) makeRoom(ctx context.Context, a *attachment) error {
	tried := map[string]bool{}
	for {
		victim, ok := c.room(a, tried, time.Now())
		if ok {
			return nil
		}
		if victim == "" {
			return errNoRoom
		}
		tried[victim] = true
		_, err := c.Stage.Unstage(ctx, victim, stage.UnstageOptions{})
		switch {
		case err == nil:
			log.G(ctx).WithField("disk", victim).Info("layer disk that was not used for longest makes room")
		case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err):
			// gone, or used, since it was looked at
		default:
			return fmt.Errorf("make room: %w", err)
		}
	}
}

// room takes a place for the attachment, or names the disk that should go, the one that was not used for longest; none
// if there is none.
func (c *Chooser) room(a *attachment, tried map[string]bool, now time.Time) (victim string, ok bool) {
	disks := c.Stage.Disks()
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.fresh {
		if !slices.ContainsFunc(disks, func(d stage.DiskStatus) bool { return d.Name == name }) {
			delete(c.fresh, name)
		}
	}
	count, idle := c.census(disks, tried, now)
	if c.MaxDisks == 0 || count < c.MaxDisks || slices.ContainsFunc(disks, func(d stage.DiskStatus) bool { return d.Name == a.item.disk }) {
		a.room = true
		return "", true
	}
	if len(idle) == 0 {
		return "", false
	}
	return slices.MinFunc(idle, func(x, y stage.DiskStatus) int {
		return cmp.Or(x.IdleSince.Compare(y.IdleSince), cmp.Compare(x.Name, y.Name))
	}).Name, false
}

// census counts the disks that are attached or have a place, and gives those that could make room, but for those that
// were tried. The caller holds mu.
func (c *Chooser) census(disks []stage.DiskStatus, tried map[string]bool, now time.Time) (count int, idle []stage.DiskStatus) {
	there := make(map[string]bool, len(disks))
	for i := range disks {
		there[disks[i].Name] = true
		d := &disks[i]
		if d.State == stage.StateIdle && !d.Keep && !tried[d.Name] && !c.awaited(d, now) {
			idle = append(idle, *d)
		}
	}
	count = len(there)
	for name, other := range c.pending {
		if other.room && !there[name] {
			count++
		}
	}
	return count, idle
}

// awaited says that the pull for which the disk was attached may be about to use it. The caller holds mu.
func (c *Chooser) awaited(d *stage.DiskStatus, now time.Time) bool {
	if c.pending[d.Name] != nil {
		return true
	}
	ready, ok := c.fresh[d.Name]
	return ok && !d.IdleSince.After(ready) && now.Sub(ready) < c.Wait
}

// leave lets go of a disk in the background, as soon as nothing uses it. The caller holds mu.
func (c *Chooser) leave(name string) {
	if _, ok := c.fresh[name]; !ok && !slices.ContainsFunc(c.Stage.Disks(), func(d stage.DiskStatus) bool { return d.Name == name }) {
		return
	}
	c.letGo(name)
}

// unstage is leave's work.
func (c *Chooser) unstage(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if _, err := c.Stage.Unstage(ctx, name, stage.UnstageOptions{Drain: true}); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("disk", name).Warn("layer disk whose image snapshot is gone is not let go yet")
	}
}
