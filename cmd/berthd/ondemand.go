package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/snapshotter"
)

// catalogTimeout bounds how long a start waits until the catalog has been read. Pulls that come before that find only
// what is read.
const catalogTimeout = 10 * time.Second

// openCatalogs is the one list of catalogs.
func openCatalogs(c config.Config, own *imageSnapshots) ([]catalog.Lister, error) {
	var listers []catalog.Lister
	if own != nil {
		listers = append(listers, own.Catalog())
	}
	if c.Catalog.Directory != "" {
		d, err := directory.Open(c.Catalog.Directory, c.Catalog.Interval.Std())
		if err != nil {
			return nil, err
		}
		listers = append(listers, d)
	}
	return listers, nil
}

// openChooser makes what attaches disks for pulls. It knows no image snapshots until followCatalogs.
func (n *node) openChooser(ctx context.Context, c config.Config) (err error) {
	if n.catalogs, err = openCatalogs(c, n.snapshots); err != nil {
		return err
	}
	platform := platforms.Normalize(platforms.DefaultSpec())
	observer := &chooserObserver{uses: n.uses}
	n.chooser, err = ondemand.New(context.WithoutCancel(ctx), ondemand.Config{
		Stage: n.stage, Drivers: slices.Sorted(maps.Keys(n.drivers.All())), Wait: c.Stage.AttachWait.Std(), MaxDisks: c.Catalog.MaxDisks,
		AttachCostBytes: c.Catalog.AttachCost, Observer: observer,
		Platform: matcher.Platform{OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant},
	})
	if err != nil {
		return err
	}
	observer.metrics = metrics.RegisterOnDemand(n.registry, texts(ondemand.Outcomes()), texts(ondemand.Results()), n.chooser.Entries)
	return nil
}

func texts[T ~string](values []T) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = string(v)
	}
	return list
}

// followCatalogs starts following all catalogs until ctx ends, and returns when they have been read, or a bound is
// over. wait returns when nothing of it runs any more.
func (n *node) followCatalogs(ctx context.Context) (wait func()) {
	ended := make(chan struct{}, len(n.catalogs))
	synced := make(chan struct{}, len(n.catalogs))
	for _, l := range n.catalogs {
		go func() {
			defer func() { ended <- struct{}{} }()
			if err := n.chooser.Follow(ctx, l, func() { synced <- struct{}{} }); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).Error("catalog is not followed any more, restart berthd when it is well")
			}
		}()
	}
	bound := time.NewTimer(catalogTimeout)
	defer bound.Stop()
	for range n.catalogs {
		select {
		case <-synced:
		case <-bound.C:
			log.G(ctx).Warn("serving while the catalog is still being read")
			bound.Reset(0)
		case <-ctx.Done():
		}
	}
	return func() {
		for range n.catalogs {
			<-ended
		}
	}
}

// chooserObserver passes on what is chosen. Its metrics are set before anything is.
type chooserObserver struct {
	metrics *metrics.OnDemand
	uses    uses
}

// Unmatched has an image snapshot made, if that is switched on.
func (o *chooserObserver) Unmatched(w ondemand.Wanted) { o.uses.Wanted(w.ImageRef, w.Manifest) }

func (o *chooserObserver) Chosen(outcome ondemand.Outcome, d matcher.Decision) {
	o.metrics.Chosen(string(outcome))
	for _, c := range d.Chosen {
		o.uses.RecordMatch(c.Name, c.ID)
	}
}

// useRecorder is an observer of the snapshotter that also records which image snapshots serve layers: one whose disk is
// attached already is not chosen again.
type useRecorder struct {
	snapshotter.Observer
	chooser *ondemand.Chooser
	uses    uses
}

func (r useRecorder) Hit(ctx context.Context, h snapshotter.Hit) {
	r.Observer.Hit(ctx, h)
	r.record(h.DiskUUID)
}

// Start is a use as well: an image that is in containerd already is not pulled.
func (r useRecorder) Start(ctx context.Context, s snapshotter.Start) {
	r.Observer.Start(ctx, s)
	r.record(s.DiskUUID)
}

func (r useRecorder) record(diskUUID string) {
	if name, id, ok := r.chooser.ImageSnapshot(diskUUID); ok {
		r.uses.RecordMatch(name, id)
	}
}

func (o *chooserObserver) Attached(result ondemand.Result, took time.Duration) {
	o.metrics.Attached(string(result), took)
}

// chosenLayers are layers of disks that are attached when they are asked for.
type chosenLayers struct {
	layerSource
	chooser *ondemand.Chooser
}

var _ snapshotter.LayerSource = chosenLayers{}

// Acquire has a disk attached that has the layer, unless an attached one has it.
func (s chosenLayers) Acquire(ctx context.Context, holder string, l snapshotter.LayerRequest) (snapshotter.HeldLayer, error) {
	held, err := heldLayer(s.stage.AcquireReady(ctx, holder, l.LayerName))
	if err == nil || !errdefs.IsNotFound(err) {
		return held, err
	}
	s.chooser.Ready(ctx, ondemand.Wanted{LayerName: l.LayerName, ImageRef: l.ImageRef, Manifest: l.Manifest, Above: l.Above})
	return s.layerSource.Acquire(ctx, holder, l)
}
