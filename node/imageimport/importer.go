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

// Importer registers and withdraws the images of disks. It is safe for concurrent use.
type Importer struct {
	// busy holds a value while something is done; it is a mutex whose waiting obeys a context.
	busy chan struct{}
	// kick wakes Run; it holds one wake-up.
	kick chan struct{}
	// reconciler may be used only by the holder of busy.
	reconciler *reconciler
	states     *states
	asked      *asked
}

// New makes an Importer that does nothing before Run. wanted reports whether the images of the disk with this name are
// to be registered.
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

// Want replaces the function that selects the disks whose images are registered.
func (im *Importer) Want(wanted func(disk string) bool) {
	im.states.want(wanted)
	im.wake()
}

// Status returns what became of the images of the disk with this UUID, in the order of namespaces and references. The
// error says what keeps all of them from being registered.
func (im *Importer) Status(name, uuid string) ([]Image, error) {
	return im.states.status(name, uuid)
}

// Asks reports whether the Importer is asking containerd for a chain just now. containerd's question to the snapshotter
// then does not come from a pull.
func (im *Importer) Asks(chain digest.Digest) bool { return im.asked.has(chain) }

// Run compares the disks with containerd at every change of the disks and now and then, and corrects the differences,
// until ctx ends.
func (im *Importer) Run(ctx context.Context) {
	for {
		changed := im.reconciler.node.Changed()
		if !sleep(ctx, changed, im.kick, im.converge(ctx)) {
			return
		}
	}
}

// sleep waits until next, a change, a wake-up, or the end of ctx. A zero next is no time limit.
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

// converge does what can be done now and returns when to look again; a zero time means never.
func (im *Importer) converge(ctx context.Context) (next time.Time) {
	if err := im.lock(ctx); err != nil {
		return time.Time{}
	}
	defer im.unlock()
	return im.reconciler.converge(ctx)
}

// Withdraw prepares a disk for being detached: if only registered images use it, it takes them back. No images are
// registered until release is called; after that the disk's images are registered again if it is still there. If
// containerd does not answer, the error is errdefs.ErrUnavailable.
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
		return nothing, nil // what is left in containerd is removed when the disk is gone
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
		// What was just removed may still have to be collected as garbage.
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
