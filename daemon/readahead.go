package daemon

import (
	"cmp"
	"context"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/distribution/reference"

	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/node/accesslists"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/readahead"
	"berth.dev/berth/readahead/firststart"
	"berth.dev/berth/readahead/liststore"
	"berth.dev/berth/snapshotter"
)

// openReadAhead makes what reads ahead.
func openReadAhead(ctx context.Context, n *node) (err error) {
	c := n.config.ReadAhead
	observer := &readAheadObserver{}
	n.reader, err = readahead.New(context.WithoutCancel(ctx), readahead.Config{
		Disks: visitedDisks{n.stage}, Lists: accessLists(n),
		Workers: c.Workers, AtOnce: c.AtOnce, Rate: c.Rate, MemoryShare: c.MemoryShare, Observer: observer,
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
	return visit, readahead.Disk(v), leave, nil
}

// accessLists are those that this node can use.
func accessLists(n *node) accesslists.Places {
	c := n.config
	p := accesslists.Places{Directory: liststore.Open(cmp.Or(c.ReadAhead.ListsDirectory, filepath.Join(c.Root, "access-lists")))}
	if n.kept != nil {
		p.ImageSnapshots = n.kept
	}
	if c.Catalog.Directory != "" {
		p.Catalog = liststore.Open(directory.AccessLists(c.Catalog.Directory))
	}
	return p
}

// openRecorder makes what records the first start of an image.
func openRecorder(ctx context.Context, n *node) (err error) {
	pass := func(firststart.Start) {}
	if n.reader != nil {
		pass = func(s firststart.Start) { n.reader.Starting(s.DiskUUID, s.Image, s.ChainID) }
	}
	n.recorder, err = firststart.New(context.WithoutCancel(ctx), firststart.Config{
		Disks: visitedDisks{n.stage}, Lists: accessLists(n),
		Time: n.config.ReadAhead.RecordTime.Std(), Since: n.started, Pass: pass,
	})
	return err
}

// startObserver is an observer of the snapshotter that has starts recorded or read ahead.
type startObserver struct {
	// Both may be nil. The recorder passes on to what reads ahead.
	reader   *readahead.Reader
	recorder *firststart.Recorder
}

var _ snapshotter.Observer = startObserver{}

// Hit is taken for the beginning of a start: whoever pulls an image mostly runs it.
func (o startObserver) Hit(_ context.Context, h snapshotter.Hit) {
	o.starting(firststart.Start{DiskUUID: h.DiskUUID, Image: normalised(h.Layer.ImageRef), ChainID: h.Layer.ChainID})
}

// Miss implements snapshotter.Observer.
func (o startObserver) Miss(context.Context, snapshotter.Miss) {}

// Start implements snapshotter.Observer.
func (o startObserver) Start(_ context.Context, s snapshotter.Start) {
	o.starting(firststart.Start{DiskUUID: s.DiskUUID, ChainID: s.ChainID, Container: true})
}

func (o startObserver) starting(s firststart.Start) {
	switch {
	case o.recorder != nil:
		o.recorder.Starting(s)
	case o.reader != nil:
		o.reader.Starting(s.DiskUUID, s.Image, s.ChainID)
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
