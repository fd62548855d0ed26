package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ImageSnapshots counts what becomes of the image snapshots that this daemon keeps. It is safe for concurrent use.
type ImageSnapshots struct {
	words          ImageSnapshotWords
	started        prometheus.Counter
	builds         *prometheus.CounterVec
	took           *prometheus.HistogramVec
	fetched        prometheus.Counter
	reused         prometheus.Counter
	matches        prometheus.Counter
	ended          *prometheus.CounterVec
	sweeps         prometheus.Counter
	sweptUp        *prometheus.CounterVec
	automaticAsked *prometheus.CounterVec
}

// ImageSnapshotWords are all values that the labels can have; any other is counted as "other".
type ImageSnapshotWords struct {
	// Reasons of builds that ended and of lives that ended, Endings of lives, Automatic what came of pulls that nothing
	// matched.
	Reasons, Endings, Automatic []string
}

// ImageSnapshotTotals are what there is now.
type ImageSnapshotTotals struct {
	// ByPhase has each phase that there can be.
	ByPhase map[string]int
	// Automatic of them.
	Automatic int
	// Owners that have any, and how many the one has that has most; those that are being deleted do not count.
	Owners, MostOfOwner int
	// Quota of each owner, 0 for none.
	Quota int
}

// RegisterImageSnapshotTotals adds the gauges of image snapshots; totals is called at each scrape.
func RegisterImageSnapshotTotals(registry prometheus.Registerer, totals func() (ImageSnapshotTotals, error)) {
	registry.MustRegister(newTotals(totals))
}

// RegisterImageSnapshots adds the metrics of what becomes of image snapshots.
func RegisterImageSnapshots(registry prometheus.Registerer, words ImageSnapshotWords) *ImageSnapshots {
	m := &ImageSnapshots{
		words: words,
		started: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_image_snapshot_builds_started_total",
			Help: "Builds of image snapshots that were begun.",
		}),
		builds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_image_snapshot_builds_total",
			Help: "Builds of image snapshots that ended, by reason: Ready and Updated succeeded, all others failed.",
		}, []string{"reason"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_image_snapshot_build_duration_seconds",
			Help:    "Time of a build, from when there was a place for it to the complete volume snapshots.",
			Buckets: []float64{1, 5, 15, 60, 180, 600, 1800, 3600, 3 * 3600, 12 * 3600},
		}, []string{"reason"}),
		fetched: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_image_snapshot_fetched_bytes_total",
			Help: "Compressed bytes that builds fetched from registries.",
		}),
		reused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_image_snapshot_reused_bytes_total",
			Help: "Unpacked bytes that builds took over from the disk of another image snapshot.",
		}),
		matches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_image_snapshot_matches_total",
			Help: "Uses of image snapshots for pulls.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_image_snapshots_ended_total",
			Help: "Image snapshots that became unavailable in time or were deleted, by reason.",
		}, []string{"ending", "reason"}),
		sweeps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_image_snapshot_sweeps_total",
			Help: "Comparisons of the storage with the store.",
		}),
		sweptUp: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_image_snapshot_sweep_findings_total",
			Help: "What sweeps found: orphan volumes and volume snapshots, those of them that were deleted, and image snapshots whose volume snapshot is lost.",
		}, []string{"finding"}),
		automaticAsked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_automatic_image_snapshots_total",
			Help: "Images that a pull wanted and no image snapshot had, by what came of it.",
		}, []string{"outcome"}),
	}
	registry.MustRegister(m.started, m.builds, m.took, m.fetched, m.reused, m.matches, m.ended, m.sweeps, m.sweptUp, m.automaticAsked)
	for _, outcome := range words.Automatic {
		m.automaticAsked.WithLabelValues(outcome)
	}
	for _, finding := range []string{findingOrphan, findingDeleted, findingLost} {
		m.sweptUp.WithLabelValues(finding)
	}
	return m
}

const (
	findingOrphan  = "orphan"
	findingDeleted = "deleted"
	findingLost    = "lost"
)

// BuildStarted counts a build that began.
func (m *ImageSnapshots) BuildStarted() { m.started.Inc() }

// BuildEnded counts a build and what it cost.
func (m *ImageSnapshots) BuildEnded(reason string, took time.Duration, fetchedBytes, reusedBytes int64) {
	reason = bounded(reason, m.words.Reasons, "other")
	m.builds.WithLabelValues(reason).Inc()
	m.took.WithLabelValues(reason).Observe(took.Seconds())
	m.fetched.Add(float64(max(0, fetchedBytes)))
	m.reused.Add(float64(max(0, reusedBytes)))
}

// Matched counts a use.
func (m *ImageSnapshots) Matched() { m.matches.Inc() }

// Ended counts the end of a life.
func (m *ImageSnapshots) Ended(ending, reason string) {
	m.ended.WithLabelValues(bounded(ending, m.words.Endings, "other"), bounded(reason, m.words.Reasons, "other")).Inc()
}

// Swept counts a sweep and what it found.
func (m *ImageSnapshots) Swept(orphans, deleted, lost int) {
	m.sweeps.Inc()
	m.sweptUp.WithLabelValues(findingOrphan).Add(float64(orphans))
	m.sweptUp.WithLabelValues(findingDeleted).Add(float64(deleted))
	m.sweptUp.WithLabelValues(findingLost).Add(float64(lost))
}

// Automatic counts an image that no image snapshot had.
func (m *ImageSnapshots) Automatic(outcome string) {
	m.automaticAsked.WithLabelValues(bounded(outcome, m.words.Automatic, "other")).Inc()
}

// totals collects gauges at each scrape.
type totals struct {
	get                                       func() (ImageSnapshotTotals, error)
	phases, automatic, owners, largest, quota *prometheus.Desc
}

func newTotals(get func() (ImageSnapshotTotals, error)) *totals {
	return &totals{
		get:       get,
		phases:    prometheus.NewDesc("berth_image_snapshots", "Image snapshots by phase.", []string{"phase"}, nil),
		automatic: prometheus.NewDesc("berth_image_snapshots_automatic", "Image snapshots that were made because nothing matched a pull.", nil, nil),
		owners:    prometheus.NewDesc("berth_image_snapshot_owners", "Owners that have image snapshots.", nil, nil),
		largest:   prometheus.NewDesc("berth_image_snapshot_quota_used", "Image snapshots of the owner that has most of them.", nil, nil),
		quota:     prometheus.NewDesc("berth_image_snapshot_quota", "Image snapshots that each owner may have, 0 for any number.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (t *totals) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{t.phases, t.automatic, t.owners, t.largest, t.quota} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (t *totals) Collect(ch chan<- prometheus.Metric) {
	now, err := t.get()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(t.phases, err)
		return
	}
	for phase, n := range now.ByPhase {
		ch <- prometheus.MustNewConstMetric(t.phases, prometheus.GaugeValue, float64(n), phase)
	}
	for desc, n := range map[*prometheus.Desc]int{t.automatic: now.Automatic, t.owners: now.Owners, t.largest: now.MostOfOwner, t.quota: now.Quota} {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n))
	}
}
