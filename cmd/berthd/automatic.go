package main

import (
	"context"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/automatic"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/metrics"
)

// openAutomatic makes what has image snapshots made of images that pulls want; nil if that is switched off.
func openAutomatic(c config.Automatic, engine automatic.Engine, planner automatic.Planner, observe func(string)) (*automatic.Maker, error) {
	if !c.Enabled {
		return nil, nil //nolint:nilnil // "switched off" is the usual answer, not an error
	}
	cfg := automatic.Config{
		Engine: engine, Planner: planner, Owner: c.Owner, Allow: c.Allow, Deny: c.Deny, MinBytes: int64(c.MinImageMiB) << 20,
		Delay: c.Delay.Std(), Retry: c.Retry.Std(), Observer: func(o automatic.Outcome) { observe(string(o)) },
	}
	for _, r := range c.Registries {
		cfg.Registries = append(cfg.Registries, imagesnapshot.Registry{
			Server: r.Server, Secret: r.Secret, PlainHTTP: r.PlainHTTP, InsecureSkipVerify: r.InsecureSkipVerify,
		})
	}
	return automatic.New(cfg)
}

// lifeObserver counts what becomes of image snapshots.
type lifeObserver struct {
	metrics *metrics.ImageSnapshots
}

var _ lifecycle.Observer = lifeObserver{}

func (o lifeObserver) BuildStarted() { o.metrics.BuildStarted() }

func (o lifeObserver) BuildEnded(b lifecycle.BuildOutcome) {
	o.metrics.BuildEnded(string(b.Reason), b.Took, b.FetchedBytes, b.ReusedBytes)
}

func (o lifeObserver) Matched() { o.metrics.Matched() }

func (o lifeObserver) Ended(e lifecycle.Ending, reason imagesnapshot.Reason) {
	o.metrics.Ended(string(e), string(reason))
}

func (o lifeObserver) Swept(r lifecycle.SweepReport) {
	o.metrics.Swept(len(r.Orphans), len(r.Deleted), len(r.Lost))
}

// registerLife adds the metrics of what becomes of image snapshots.
func registerLife(registry prometheus.Registerer) *metrics.ImageSnapshots {
	return metrics.RegisterImageSnapshots(registry, metrics.ImageSnapshotWords{
		Reasons: texts(imagesnapshot.Reasons()), Endings: texts(lifecycle.Endings()), Automatic: texts(automatic.Outcomes()),
	})
}

// registerTotals adds the gauges of a store.
func registerTotals(ctx context.Context, registry prometheus.Registerer, s store.Store, quota int) {
	metrics.RegisterImageSnapshotTotals(registry, func() (metrics.ImageSnapshotTotals, error) {
		list, err := s.List(ctx, store.Filter{})
		return lifeTotals(list, quota), err
	})
}

func lifeTotals(list []*imagesnapshot.ImageSnapshot, quota int) metrics.ImageSnapshotTotals {
	t := metrics.ImageSnapshotTotals{ByPhase: map[string]int{}, Quota: quota}
	for _, p := range imagesnapshot.Phases() {
		t.ByPhase[string(p)] = 0
	}
	owners := map[string]int{}
	for _, s := range list {
		t.ByPhase[string(s.Status.Phase)]++
		if s.Origin == imagesnapshot.OriginAutomatic {
			t.Automatic++
		}
		if s.Status.Phase != imagesnapshot.PhaseDeleting {
			owners[s.Owner]++
		}
	}
	if t.Owners = len(owners); t.Owners > 0 {
		t.MostOfOwner = slices.Max(slices.Collect(maps.Values(owners)))
	}
	return t
}
