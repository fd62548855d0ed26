package ondemand

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/matcher"
	"berth.dev/berth/node/stage"
)

// attacher attaches the chosen disks, and detaches disks that must make room or are no longer wanted.
type attacher struct {
	Config
	view *view
	// running counts what runs in the background.
	running sync.WaitGroup
	// begin and beginDetach start run and detach in the background. mu is held for both.
	begin       func(a *attachment, spec stage.Spec)
	beginDetach func(disk string)

	mu     sync.Mutex // guards all below
	closed bool
	// pending has the attachments under way, by the name of the disk.
	pending map[string]*attachment
	// fresh has the times at which disks were attached here, by name.
	fresh map[string]time.Time
}

// newAttacher makes an attacher whose work in the background ends with ctx.
func newAttacher(ctx context.Context, cfg Config, v *view) *attacher {
	c := &attacher{Config: cfg, view: v, pending: map[string]*attachment{}, fresh: map[string]time.Time{}}
	c.begin = func(a *attachment, spec stage.Spec) { c.running.Go(func() { c.run(ctx, a, spec) }) }
	// Detaching goes on while the node stops: the stage journals it first.
	detaching := context.WithoutCancel(ctx)
	c.beginDetach = func(disk string) { c.running.Go(func() { c.detach(detaching, disk) }) }
	return c
}

// close keeps anything new from being begun. Use running to wait for what already runs.
func (c *attacher) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

// attachment is one disk that is being attached.
type attachment struct {
	item    *item
	started time.Time
	// wanted is since when pulls have waited for the disk, or for another disk that this one replaces.
	wanted time.Time
	// instead has the failed items that this attachment replaces. They are passed over while it is under way.
	instead []*item
	// room says that the disk counts as one of the node's disks; attacher.mu guards it.
	room bool
	// done is closed at the end; from then on err is the outcome.
	done chan struct{}
	err  error
}

// errNoRoom says that no disk can make room.
var errNoRoom = fmt.Errorf("as many layer disks as allowed are attached, and all of them are in use, kept or just attached: %w", errdefs.ErrResourceExhausted)

// detachTimeout bounds detaching a disk; the stage completes what fails halfway.
const detachTimeout = time.Minute

// wait returns when the disk is there, or when pulls have waited for it long enough, counted from the first of them.
func (a *attachment) wait(ctx context.Context, most time.Duration) DiskResult {
	timer := time.NewTimer(most - time.Since(a.wanted))
	defer timer.Stop()
	r := DiskResult{Name: a.item.name, ID: a.item.id, Disk: a.item.disk}
	select {
	case <-a.done: // check this first, even if the time is over
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

// attach starts to attach the chosen disks that are not attached. wanted is since when pulls have waited, and instead
// has the failed items that these replace. It returns the attachments that are under way now.
func (c *attacher) attach(chosen []matcher.Choice, wanted time.Time, instead []*item) (under []*attachment, outcome Outcome) {
	outcome = OutcomeNone
	for _, choice := range chosen {
		it := c.view.item(choice.ID)
		if it == nil {
			continue // withdrawn meanwhile
		}
		wish := &attachment{item: it, started: time.Now(), wanted: wanted, instead: instead, done: make(chan struct{})}
		a, began := c.join(wish, choice.Attached)
		if a == nil {
			continue
		}
		under = append(under, a)
		if began {
			outcome = OutcomeAttach
		} else if outcome == OutcomeNone {
			outcome = OutcomeJoin
		}
	}
	return under, outcome
}

// join starts to attach a disk and returns the attachment. If one is under way already, it returns that. If the disk is
// attached, it returns nil.
func (c *attacher) join(a *attachment, attached bool) (under *attachment, began bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if under := c.pending[a.item.disk]; under != nil || attached || c.closed {
		return under, false
	}
	c.view.passOver(a.instead)
	c.pending[a.item.disk] = a
	c.begin(a, a.item.spec())
	return a, true
}

// run attaches one disk.
func (c *attacher) run(ctx context.Context, a *attachment, spec stage.Spec) {
	err := c.makeRoom(ctx, a)
	if err == nil {
		_, err = c.Stage.Stage(ctx, spec)
	}
	now := time.Now()
	if err == nil || !errors.Is(err, errNoRoom) && ctx.Err() == nil { // otherwise it is not the disk's fault
		c.view.attached(a.item, now, err)
	}
	c.view.consider(a.instead)
	c.mu.Lock()
	delete(c.pending, spec.Name)
	if err == nil {
		c.fresh[spec.Name] = now
	}
	c.mu.Unlock()
	if err == nil && !c.view.stands(a.item) {
		c.detachUnused(spec.Name) // withdrawn meanwhile
	}
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

// makeRoom detaches idle disks until there is room for one more.
func (c *attacher) makeRoom(ctx context.Context, a *attachment) error {
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
			// gone or in use since it was listed
		default:
			return fmt.Errorf("make room: %w", err)
		}
	}
}

// room takes a place for the attachment, or names the idle disk that should make room: the one that has been unused for
// the longest time. The name is empty if no disk can make room.
func (c *attacher) room(a *attachment, tried map[string]bool, now time.Time) (victim string, ok bool) {
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

// census counts the disks that are attached or have a place, and lists the idle disks that could make room and were not
// tried yet. The caller holds mu.
func (c *attacher) census(disks []stage.DiskStatus, tried map[string]bool, now time.Time) (count int, idle []stage.DiskStatus) {
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

// awaited reports whether the pull for which the disk was attached may be about to use it. The caller holds mu.
func (c *attacher) awaited(d *stage.DiskStatus, now time.Time) bool {
	if c.pending[d.Name] != nil {
		return true
	}
	ready, ok := c.fresh[d.Name]
	return ok && !d.IdleSince.After(ready) && now.Sub(ready) < c.Wait
}

// detachUnused detaches a disk that is no longer wanted, in the background and as soon as nothing uses it: the storage
// may be about to delete what the disk is made of. It does not detach disks that were not attached here.
func (c *attacher) detachUnused(name string) {
	there := slices.ContainsFunc(c.Stage.Disks(), func(d stage.DiskStatus) bool { return d.Name == name })
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, fresh := c.fresh[name]; (fresh || there) && !c.closed {
		c.beginDetach(name)
	}
}

// detach is the work of detachUnused.
func (c *attacher) detach(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	if _, err := c.Stage.Unstage(ctx, name, stage.UnstageOptions{Drain: true}); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("disk", name).Warn("layer disk whose image snapshot is gone is not detached yet")
	}
}

// noRoomFor returns a warning that names the chosen disks for which there is no room; empty if there is room for all.
func (c *attacher) noRoomFor(chosen []matcher.Choice, now time.Time) string {
	disks := c.Stage.Disks()
	c.mu.Lock()
	defer c.mu.Unlock()
	count, idle := c.census(disks, nil, now)
	spare := c.MaxDisks - count + len(idle)
	var without []string
	for _, choice := range chosen {
		if it := c.view.item(choice.ID); it == nil || choice.Attached || c.pending[it.disk] != nil {
			continue
		}
		if spare--; c.MaxDisks > 0 && spare < 0 {
			without = append(without, choice.Name)
		}
	}
	if len(without) == 0 {
		return ""
	}
	return fmt.Sprintf("%d layer disks are attached, as many as allowed, and none can make room: a pull goes on without that of %v", count, without)
}
