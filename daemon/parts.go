package daemon

import (
	"context"
	"slices"
	"sync"

	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/node/disks"
)

// part is one part of a daemon.
type part struct {
	name string
	// open makes the part ready from what those before it have made.
	open func(ctx context.Context, n *node) error
	// run, if not nil, works until ctx ends.
	run func(ctx context.Context, n *node)
	// settle, if not nil, makes the part run before the first request is answered, and returns when it has come so far
	// that requests find what they need.
	settle func(ctx context.Context, n *node)
	// close, if not nil, gives back what open took. It is for after run.
	close func(n *node) error
}

// parts in the order in which they are opened.
func parts(c *config.Config) []part {
	list := []part{
		{name: "drivers", open: openDrivers, close: func(n *node) error { return n.drivers.Close() }},
		{name: "disks", open: openDisks, run: keepDisks, close: closeDisks},
		{name: "image snapshots", open: openImageSnapshots, run: runImageSnapshots, close: closeImageSnapshots},
		{
			name: "disks for pulls", open: openChooser, run: followCatalogs, settle: awaitCatalogs,
			close: func(n *node) error { return n.chooser.Close() },
		},
		{name: "read ahead", open: openReadAhead, close: func(n *node) error { return n.reader.Close() }},
		{name: "records of first starts", open: openRecorder, close: func(n *node) error { return n.recorder.Close() }},
		{name: "containerd's client", open: openContainerd, close: func(n *node) error { return n.containerd.Close() }},
		{name: "snapshotter", open: openSnapshotter, close: func(n *node) error { return n.snapshotter.Close() }},
		{name: "imports", open: openImporter, run: func(ctx context.Context, n *node) { n.importer.Run(ctx) }},
		{name: "images of CRI", open: nothing, run: restoreCRIImages},
		{name: "holds", open: reconcile},
		{name: "reports of failed disks", open: nothing, run: func(ctx context.Context, n *node) { n.failures.Run(ctx, n.chooser, n.uses) }},
		{name: "checks of disks", open: nothing, run: func(ctx context.Context, n *node) { disks.KeepChecking(ctx, n.stage) }},
		{name: "discovery", open: nothing, run: discover},
		{name: "metrics", open: nothing, run: func(ctx context.Context, n *node) { metrics.Serve(ctx, n.config.Metrics.Address, n.registry) }},
		{name: "reloads", open: nothing, run: reload},
	}
	wanted := map[string]bool{
		"read ahead": c.ReadAhead.Enabled, "records of first starts": c.ReadAhead.RecordFirstStart, "discovery": c.Discover.Enabled,
	}
	return slices.DeleteFunc(list, func(p part) bool {
		on, optional := wanted[p.name]
		return optional && !on
	})
}

// nothing is to be opened.
func nothing(context.Context, *node) error { return nil }

// start runs the parts for which want is true, until ctx ends.
func (d *Daemon) start(ctx context.Context, running *sync.WaitGroup, want func(part) bool) {
	for _, p := range d.opened {
		if p.run != nil && want(p) {
			running.Go(func() { p.run(ctx, d.node) })
		}
	}
}

// settle waits until requests can be answered.
func (d *Daemon) settle(ctx context.Context) {
	for _, p := range d.opened {
		if p.settle != nil {
			p.settle(ctx, d.node)
		}
	}
}
