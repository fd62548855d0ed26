package daemon

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/platforms"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/snapshotter"
)

// catalogTimeout bounds how long a start waits until the catalog has been read. Pulls that come before that find only
// what is read.
const catalogTimeout = 10 * time.Second

// openCatalogs is the one list of catalogs.
func openCatalogs(n *node) ([]catalog.Lister, error) {
	var listers []catalog.Lister
	if n.kept != nil {
		listers = append(listers, n.kept.Catalog())
	}
	if c := n.config.Catalog; c.Directory != "" {
		d, err := directory.Open(c.Directory, c.Interval.Std())
		if err != nil {
			return nil, err
		}
		listers = append(listers, d)
	}
	return listers, nil
}

// openChooser makes what attaches disks for pulls. It knows no image snapshots until followCatalogs.
func openChooser(ctx context.Context, n *node) (err error) {
	if n.catalogs, err = openCatalogs(n); err != nil {
		return err
	}
	n.synced = make(chan struct{}, len(n.catalogs))
	platform := platforms.Normalize(platforms.DefaultSpec())
	observer := &chooserObserver{uses: n.uses}
	n.chooser, err = ondemand.New(context.WithoutCancel(ctx), ondemand.Config{
		Stage: n.stage, Drivers: slices.Sorted(maps.Keys(n.drivers.All())), Wait: n.config.Stage.AttachWait.Std(),
		MaxDisks: n.config.Catalog.MaxDisks, AttachCostBytes: n.config.Catalog.AttachCost, Observer: observer,
		Platform: matcher.Platform{OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant},
	})
	if err != nil {
		return err
	}
	observer.metrics = metrics.RegisterOnDemand(n.registry, texts(ondemand.Outcomes()), texts(ondemand.Results()), n.chooser.Entries)
	serveImageSnapshots(n)
	return nil
}

func texts[T ~string](values []T) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = string(v)
	}
	return list
}

// followCatalogs has the chooser follow all catalogs until ctx ends.
func followCatalogs(ctx context.Context, n *node) {
	var running sync.WaitGroup
	defer running.Wait()
	for _, l := range n.catalogs {
		running.Go(func() {
			if err := n.chooser.Follow(ctx, l, func() { n.synced <- struct{}{} }); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).Error("a catalog is no longer followed: repair it and restart berthd")
			}
		})
	}
}

// awaitCatalogs returns when all catalogs have been read, or a bound is over.
func awaitCatalogs(ctx context.Context, n *node) {
	bound := time.NewTimer(catalogTimeout)
	defer bound.Stop()
	for range n.catalogs {
		select {
		case <-n.synced:
		case <-bound.C:
			log.G(ctx).Warn("serving while the catalog is still being read")
			return
		case <-ctx.Done():
			return
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

// useRecorder is an observer of the snapshotter that records which image snapshots serve layers: one whose disk is
// attached already is not chosen again.
type useRecorder struct {
	chooser *ondemand.Chooser
	uses    uses
}

var _ snapshotter.Observer = useRecorder{}

// Hit implements snapshotter.Observer.
func (r useRecorder) Hit(_ context.Context, h snapshotter.Hit) { r.record(h.DiskUUID) }

// Miss implements snapshotter.Observer.
func (r useRecorder) Miss(context.Context, snapshotter.Miss) {}

// Start is a use as well: an image that is in containerd already is not pulled.
func (r useRecorder) Start(_ context.Context, s snapshotter.Start) { r.record(s.DiskUUID) }

func (r useRecorder) record(diskUUID string) {
	if name, id, ok := r.chooser.ImageSnapshot(diskUUID); ok {
		r.uses.RecordMatch(name, id)
	}
}

func (o *chooserObserver) Attached(result ondemand.Result, took time.Duration) {
	o.metrics.Attached(string(result), took)
}
