package imageimport

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Importer is safe for concurrent use.
type Importer struct {
	// busy holds a value while something is done; it is a mutex whose waiting obeys a context.
	busy chan struct{}
	// kick wakes Run; it holds one wake-up.
	kick chan struct{}
	// reconciler belongs to who is busy.
	reconciler *reconciler
	states     *states
	asked      *asked
}

// New makes an Importer that does nothing before Run. wanted says by its name whether the images of a disk are to be
// registered.
func New(cfg Config, node Node, ctr Containerd, wanted func(disk string) bool) *Importer {
	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}
	nothing := func(string) {}
	choose := chooser{patterns: cfg.Images, platform: cfg.Platform}
	im := &Importer{
		busy: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		states: &states{wanted: wanted, byUUID: map[string]*state{}}, asked: &asked{chains: map[digest.Digest]bool{}},
	}
	im.reconciler = &reconciler{
		node: node, observer: cfg.Observer, idleTimeout: cfg.IdleTimeout, chooser: choose, states: im.states,
		inventory:  inventory{ctr: ctr, namespaces: cfg.Namespaces, marker: cfg.Marker},
		registrar:  &registrar{ctr: ctr, snapshotter: cfg.Snapshotter, pinned: cfg.Pinned, asked: im.asked, crash: nothing},
		withdrawer: &withdrawer{node: node, ctr: ctr, snapshotter: cfg.Snapshotter, chooser: choose, crash: nothing},
	}
	return im
}

// Want replaces what says which disks' images are registered.
func (im *Importer) Want(wanted func(disk string) bool) {
	im.states.want(wanted)
	im.wake()
}

// Status is what became of the images of a disk by its UUID, in the order of namespaces and references, and what keeps
// them from being registered altogether.
func (im *Importer) Status(name, uuid string) ([]Image, error) {
	return im.states.status(name, uuid)
}

// Asks says whether containerd is being asked for a chain just now, so that its question to the snapshotter is no
// pull's.
func (im *Importer) Asks(chain digest.Digest) bool { return im.asked.has(chain) }

// Run compares disks and containerd at every change of the disks, and now and then, and makes good what differs, until
// ctx ends.
func (im *Importer) Run(ctx context.Context) {
	for {
		changed := im.reconciler.node.Changed()
		if !sleep(ctx, changed, im.kick, im.converge(ctx)) {
			return
		}
	}
}

// sleep until next, a change, a wake-up, or the end; next zero is no time at all.
func sleep(ctx context.Context, changed, kick <-chan struct{}, next time.Time) bool {
	var alarm <-chan time.Time
	if !next.IsZero() {
		timer := time.NewTimer(time.Until(next))
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-kick:
	case <-alarm:
	}
	return ctx.Err() == nil
}

// converge does what can be done now and says when to look again; never if that is zero.
func (im *Importer) converge(ctx context.Context) (next time.Time) {
	if err := im.lock(ctx); err != nil {
		return time.Time{}
	}
	defer im.unlock()
	return im.reconciler.converge(ctx)
}

// Withdraw makes way for detaching a disk: if nothing uses it but registered images, those are taken back. Until
// release is called no images are registered; then the disk's are again, if it is still there. A containerd that does
// not answer is errdefs.ErrUnavailable.
func (im *Importer) Withdraw(ctx context.Context, name string) (release func(), err error) {
	nothing := func() {}
	if err := im.lock(ctx); err != nil {
		return nothing, err
	}
	defer im.unlock()
	c := im.reconciler
	disks := c.node.Disks()
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.Name == name })
	if i < 0 || disks[i].UUID == "" || disks[i].Holders == 0 || !c.concerned(disks) {
		return nothing, nil // what is left in containerd goes when the disk is gone
	}
	d := disks[i]
	all, err := c.inventory.look(ctx)
	if err != nil {
		if lost(err) {
			err = fmt.Errorf("containerd, which may have images of the disk, does not answer, start it first: %w: %w", err, errdefs.ErrUnavailable)
		}
		return nothing, fmt.Errorf("take back images of disk %s: %w", name, err)
	}
	free, err := c.withdrawer.free(ctx, d, all, disks)
	if err == nil && !free {
		// What was just removed may only have to be collected.
		err = c.withdrawer.collect(namespaces.WithNamespace(ctx, c.inventory.namespaces[0]), d.UUID)
		if err == nil {
			free, err = c.withdrawer.free(ctx, d, all, disks)
		}
	}
	if err != nil {
		return nothing, err
	}
	if !free {
		return nothing, nil // whoever detaches it finds out how many use it
	}
	st := c.states.of(d.UUID)
	c.states.withhold(st, 1)
	release = func() {
		c.states.withhold(st, -1)
		im.wake()
	}
	if err := c.takeBack(ctx, d.UUID, all, disks); err != nil {
		release()
		return nothing, fmt.Errorf("take back images of disk %s: %w", name, err)
	}
	return release, nil
}

func (im *Importer) lock(ctx context.Context) error {
	select {
	case im.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (im *Importer) unlock() { <-im.busy }

func (im *Importer) wake() {
	select {
	case im.kick <- struct{}{}:
	default: // a wake-up is waiting already
	}
}
