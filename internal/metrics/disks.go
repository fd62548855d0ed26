package metrics

import "github.com/prometheus/client_golang/prometheus"

// DiskTotals are what is attached at one moment.
type DiskTotals struct {
	// ByState counts the disks per state; states are few.
	ByState map[string]int
	// Layers on disks that serve, those of them in use, and the snapshots that use them.
	Layers, LayersInUse, Adopted int
}

// disks asks for the totals at each scrape.
type disks struct {
	totals                               func() (DiskTotals, error)
	attached, layers, layersUsed, adopts *prometheus.Desc
}

// RegisterDisks adds the gauges about disks; totals is called at each scrape.
func RegisterDisks(registry prometheus.Registerer, totals func() (DiskTotals, error)) {
	registry.MustRegister(&disks{
		totals:     totals,
		attached:   prometheus.NewDesc("berth_disks", "Layer disks by state.", []string{"state"}, nil),
		layers:     prometheus.NewDesc("berth_layers", "Layers on the disks that serve.", nil, nil),
		layersUsed: prometheus.NewDesc("berth_layers_in_use", "Layers on disks that a snapshot uses.", nil, nil),
		adopts:     prometheus.NewDesc("berth_adopted_snapshots", "Snapshots that are a layer on a disk.", nil, nil),
	})
}

// Describe implements prometheus.Collector.
func (d *disks) Describe(ch chan<- *prometheus.Desc) {
	ch <- d.attached
	ch <- d.layers
	ch <- d.layersUsed
	ch <- d.adopts
}

// Collect implements prometheus.Collector.
func (d *disks) Collect(ch chan<- prometheus.Metric) {
	t, err := d.totals()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(d.attached, err)
		return
	}
	for state, n := range t.ByState {
		ch <- prometheus.MustNewConstMetric(d.attached, prometheus.GaugeValue, float64(n), state)
	}
	ch <- prometheus.MustNewConstMetric(d.layers, prometheus.GaugeValue, float64(t.Layers))
	ch <- prometheus.MustNewConstMetric(d.layersUsed, prometheus.GaugeValue, float64(t.LayersInUse))
	ch <- prometheus.MustNewConstMetric(d.adopts, prometheus.GaugeValue, float64(t.Adopted))
}
