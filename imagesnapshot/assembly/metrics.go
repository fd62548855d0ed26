package assembly

import (
	"context"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/automatic"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/internal/metrics"
)

// observer counts what happens to image snapshots.
type observer struct {
	metrics *metrics.ImageSnapshots
}

var _ lifecycle.Observer = observer{}

// observe adds the metrics to a registry.
func observe(registry prometheus.Registerer) observer {
	return observer{metrics.RegisterImageSnapshots(registry, metrics.ImageSnapshotWords{
		Reasons: words(imagesnapshot.Reasons()), Endings: words(lifecycle.Endings()), Automatic: words(automatic.Outcomes()),
	})}
}

func words[T ~string](values []T) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = string(v)
	}
	return list
}

func (o observer) BuildStarted() { o.metrics.BuildStarted() }

func (o observer) BuildEnded(b lifecycle.BuildOutcome) {
	o.metrics.BuildEnded(string(b.Reason), b.Took, b.FetchedBytes, b.ReusedBytes)
}

func (o observer) Matched() { o.metrics.Matched() }

func (o observer) Ended(e lifecycle.Ending, reason imagesnapshot.Reason) {
	o.metrics.Ended(string(e), string(reason))
}

func (o observer) Swept(r lifecycle.SweepReport) {
	o.metrics.Swept(len(r.Orphans), len(r.Deleted), len(r.Lost))
}

func (o observer) automatic(outcome automatic.Outcome) { o.metrics.Automatic(string(outcome)) }

// registerTotals adds the gauges of a store.
func registerTotals(ctx context.Context, registry prometheus.Registerer, s store.Store, quota int) {
	metrics.RegisterImageSnapshotTotals(registry, func() (metrics.ImageSnapshotTotals, error) {
		list, err := s.List(ctx, store.Filter{})
		return totals(list, quota), err
	})
}

func totals(list []*imagesnapshot.ImageSnapshot, quota int) metrics.ImageSnapshotTotals {
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
