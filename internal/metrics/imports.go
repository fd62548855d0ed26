package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Imports counts what became of images of disks that containerd was to be told of. It is safe for concurrent use.
type Imports struct {
	results []string
	images  *prometheus.CounterVec
}

// RegisterImports adds the metrics. results are all values that the label can have; any other is counted as "other".
func RegisterImports(registry prometheus.Registerer, results []string) *Imports {
	i := &Imports{
		results: slices.Clone(results),
		images: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_image_imports_total",
			Help: "Images of disks that were to be registered in containerd, by what became of them.",
		}, []string{"result"}),
	}
	registry.MustRegister(i.images)
	for _, r := range results {
		i.images.WithLabelValues(r)
	}
	return i
}

// Image counts one.
func (i *Imports) Image(result string) {
	i.images.WithLabelValues(bounded(result, i.results, "other")).Inc()
}
