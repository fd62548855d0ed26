package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// OnDemand counts what is attached because pulls need it. It is safe for concurrent use.
type OnDemand struct {
	outcomes, results []string
	choices           *prometheus.CounterVec
	attached          *prometheus.HistogramVec
}

// RegisterOnDemand adds the metrics about disks that are attached on demand. outcomes and results are all values that
// the labels can have; any other is counted as "other". entries is called at each scrape.
func RegisterOnDemand(registry prometheus.Registerer, outcomes, results []string, entries func() int) *OnDemand {
	o := &OnDemand{
		outcomes: slices.Clone(outcomes), results: slices.Clone(results),
		choices: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_choices_total",
			Help: "Questions which image snapshot has a layer that no attached disk has, by what came of them.",
		}, []string{"outcome"}),
		attached: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_on_demand_attach_duration_seconds",
			Help:    "Time from when a pull wanted a disk to when it was attached or given up, by result.",
			Buckets: []float64{.01, .05, .25, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"result"}),
	}
	registry.MustRegister(o.choices, o.attached, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berth_catalog_entries",
		Help: "Image snapshots that this node knows.",
	}, func() float64 { return float64(entries()) }))
	for _, outcome := range outcomes {
		o.choices.WithLabelValues(outcome)
	}
	return o
}

// Chosen counts a question.
func (o *OnDemand) Chosen(outcome string) {
	o.choices.WithLabelValues(bounded(outcome, o.outcomes, "other")).Inc()
}

// Attached records how attaching a disk ended.
func (o *OnDemand) Attached(result string, took time.Duration) {
	o.attached.WithLabelValues(bounded(result, o.results, "other")).Observe(took.Seconds())
}
