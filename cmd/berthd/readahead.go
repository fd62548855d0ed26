package main

import (
	"cmp"
	"context"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"

	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/readahead"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/firststart"
	"berth.dev/berth/readahead/liststore"
	"berth.dev/berth/snapshotter"
)

// openReader makes what reads ahead, if the configuration wants that.
func (n *node) openReader(ctx context.Context, c config.Config) (err error) {
	h := c.ReadAhead
	if !h.Enabled {
		return nil
	}
	observer := &readAheadObserver{}
	n.reader, err = readahead.New(context.WithoutCancel(ctx), readahead.Config{
		Disks: visitedDisks{n.stage}, Lists: n.accessLists(c),
		Workers: h.Workers, AtOnce: h.AtOnce, Rate: h.Rate, MemoryShare: h.MemoryShare, Observer: observer,
	})
	if err != nil {
		return err
	}
	// Nothing is read ahead before the first pull.
	observer.metrics = metrics.RegisterReadAhead(n.registry, texts(readahead.Results()), func() metrics.ReadAheadTotals {
		t := n.reader.Totals()
		return metrics.ReadAheadTotals{Bytes: t.Bytes, Reads: t.Pieces, Skipped: t.Skipped, Running: t.Running, Waiting: t.Waiting}
	})
	return nil
}

// readAheadObserver passes on how reading ahead ended: to metrics and to the log.
type readAheadObserver struct {
	metrics *metrics.ReadAhead
}

func (o *readAheadObserver) ReadAhead(ctx context.Context, r readahead.Run) {
	o.metrics.Ended(string(r.Result), r.Took)
	entry := log.G(ctx).WithFields(log.Fields{"image": r.Image, "disk": r.Disk, "result": r.Result, "bytes": r.Bytes, "took": r.Took, "listed": r.Listed})
	if r.Result == readahead.ResultFailed {
		entry.WithField("reason", r.Reason).Warn("start of image is not read ahead any further")
		return
	}
	entry.Debug("start of image is read ahead")
}

// visitedDisks is the stage as a reader sees it.
type visitedDisks struct {
	stage *stage.Stager
}

var _ readahead.Disks = visitedDisks{}

func (d visitedDisks) Visit(ctx context.Context, diskUUID string) (context.Context, readahead.Disk, func(), error) {
	visit, v, leave, err := d.stage.Visit(ctx, diskUUID)
	if err != nil {
		return nil, readahead.Disk{}, nil, err
	}
	return visit, readahead.Disk{Name: v.Name, Identity: v.Identity, Device: v.Device, DeviceNumber: v.DeviceNumber, SizeBytes: v.SizeBytes,
		MountPoint: v.MountPoint, Index: v.Index}, leave, nil
}

// accessLists finds lists where they may be, in this order: with an image snapshot of the very disk, in the node's own
// directory, and beside the catalog.
type accessLists struct {
	// snapshots is nil if this node keeps none.
	snapshots store.AccessLists
	directory *liststore.Dir
	// catalog is nil without one.
	catalog *liststore.Dir
}

func (n *node) accessLists(c config.Config) accessLists {
	lists := accessLists{directory: liststore.Open(cmp.Or(c.ReadAhead.ListsDirectory, filepath.Join(c.Root, "access-lists")))}
	if n.snapshots != nil {
		lists.snapshots = n.snapshots
	}
	if c.Catalog.Directory != "" {
		lists.catalog = liststore.Open(directory.AccessLists(c.Catalog.Directory))
	}
	return lists
}

var _ readahead.Lists = accessLists{}

func (a accessLists) AccessList(ctx context.Context, d readahead.Disk, image string) (*accesslist.List, error) {
	return a.find(ctx, d.Identity, image)
}

func (a accessLists) find(ctx context.Context, disk layerdisk.Identity, image string) (*accesslist.List, error) {
	if a.snapshots != nil {
		kept, _, err := a.snapshots.AccessListsOn(ctx, disk.IndexDigest, image)
		if err != nil {
			log.G(ctx).WithError(err).Warn("access lists of image snapshots cannot be used")
		}
		if len(kept) > 0 {
			return kept[0], nil
		}
	}
	l, err := choose(ctx, a.directory, disk, image)
	if errdefs.IsNotFound(err) && a.catalog != nil {
		return choose(ctx, a.catalog, disk, image)
	}
	return l, err
}

// choose a list of the image from a directory.
func choose(ctx context.Context, from *liststore.Dir, disk layerdisk.Identity, image string) (*accesslist.List, error) {
	lists, problems, err := from.Lists(ctx, image)
	if problems != nil {
		log.G(ctx).WithError(problems).Warn("some access lists cannot be used")
	}
	if err != nil {
		return nil, err
	}
	for _, l := range lists {
		// Of several, that of the very disk knows most.
		if l.Disk == disk.IndexDigest {
			return l, nil
		}
	}
	return lists[0], nil
}

// startWatcher is an observer of the snapshotter that also has what starts recorded or read ahead.
type startWatcher struct {
	snapshotter.Observer
	// reader and recorder may be nil. The recorder passes on to the reader.
	reader   *readahead.Reader
	recorder *firststart.Recorder
}

func (w startWatcher) Hit(ctx context.Context, h snapshotter.Hit) {
	w.Observer.Hit(ctx, h)
	w.starting(firststart.Start{DiskUUID: h.DiskUUID, Image: normalised(h.Layer.ImageRef), ChainID: h.Layer.ChainID})
}

func (w startWatcher) Start(ctx context.Context, s snapshotter.Start) {
	w.Observer.Start(ctx, s)
	w.starting(firststart.Start{DiskUUID: s.DiskUUID, ChainID: s.ChainID, Container: true})
}

func (w startWatcher) starting(s firststart.Start) {
	switch {
	case w.recorder != nil:
		w.recorder.Starting(s)
	case w.reader != nil:
		w.reader.Starting(s.DiskUUID, s.Image, s.ChainID)
	}
}

// normalised reference, as access lists have it; empty if it is none.
func normalised(imageRef string) string {
	if imageRef == "" {
		return ""
	}
	named, err := reference.ParseDockerRef(imageRef)
	if err != nil {
		return ""
	}
	return named.String()
}
