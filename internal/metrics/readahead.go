package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ReadAheadTotals are what was read ahead since the start, and how many starts are being read ahead for or wait for
// that.
type ReadAheadTotals struct {
	Bytes, Reads, Skipped int64
	Running, Waiting      int
}

// ReadAhead observes how reading ahead ends. It is safe for concurrent use.
type ReadAhead struct {
	results []string
	took    *prometheus.HistogramVec
}

// readAheadTotals asks for the totals at each scrape.
type readAheadTotals struct {
	totals                       func() ReadAheadTotals
	bytes, reads, skipped, under *prometheus.Desc
}

// RegisterReadAhead adds the metrics about reading ahead. results are all values that the label can have; any other is
// counted as "other". totals is called at each scrape.
func RegisterReadAhead(registry prometheus.Registerer, results []string, totals func() ReadAheadTotals) *ReadAhead {
	h := &ReadAhead{results: slices.Clone(results), took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berth_read_ahead_duration_seconds",
		Help:    "Time that reading ahead for a start took, by result.",
		Buckets: []float64{.01, .05, .25, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"result"})}
	registry.MustRegister(h.took, &readAheadTotals{
		totals:  totals,
		bytes:   prometheus.NewDesc("berth_read_ahead_bytes_total", "Bytes of layer disks that were read ahead.", nil, nil),
		reads:   prometheus.NewDesc("berth_read_ahead_reads_total", "Reads that brought them.", nil, nil),
		skipped: prometheus.NewDesc("berth_read_ahead_skipped_total", "Parts of access lists that were not on the disk.", nil, nil),
		under:   prometheus.NewDesc("berth_read_ahead_starts", "Starts that are read ahead for, by state.", []string{"state"}, nil),
	})
	for _, r := range results {
		h.took.WithLabelValues(r)
	}
	return h
}

// Ended records how reading ahead for one start ended.
func (h *ReadAhead) Ended(result string, took time.Duration) {
	h.took.WithLabelValues(bounded(result, h.results, "other")).Observe(took.Seconds())
}

// Describe implements prometheus.Collector.
func (h *readAheadTotals) Describe(ch chan<- *prometheus.Desc) {
	ch <- h.bytes
	ch <- h.reads
	ch <- h.skipped
	ch <- h.under
}

// Collect implements prometheus.Collector.
func (h *readAheadTotals) Collect(ch chan<- prometheus.Metric) {
	t := h.totals()
	ch <- prometheus.MustNewConstMetric(h.bytes, prometheus.CounterValue, float64(t.Bytes))
	ch <- prometheus.MustNewConstMetric(h.reads, prometheus.CounterValue, float64(t.Reads))
	ch <- prometheus.MustNewConstMetric(h.skipped, prometheus.CounterValue, float64(t.Skipped))
	ch <- prometheus.MustNewConstMetric(h.under, prometheus.GaugeValue, float64(t.Running), "running")
	ch <- prometheus.MustNewConstMetric(h.under, prometheus.GaugeValue, float64(t.Waiting), "waiting")
}
