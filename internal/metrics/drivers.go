package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Drivers measure block storage drivers.
type Drivers struct {
	operations *prometheus.HistogramVec
	failures   *prometheus.CounterVec
}

// RegisterDrivers adds the metrics of block storage drivers. Drivers are those of the configuration, and operations
// have fixed names, so that the labels are bounded.
func RegisterDrivers(registry prometheus.Registerer) *Drivers {
	d := &Drivers{
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_driver_operation_duration_seconds",
			Help:    "Time that an attempt at an operation of a block storage driver took, by driver and operation.",
			Buckets: []float64{.001, .01, .1, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"driver", "operation"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_driver_errors_total",
			Help: "Attempts at operations of a block storage driver that failed, by driver, operation and class of error.",
		}, []string{"driver", "operation", "class"}),
	}
	registry.MustRegister(d.operations, d.failures)
	return d
}

// Operation records an attempt at an operation of a driver. class is empty if it succeeded.
func (d *Drivers) Operation(driver, operation string, took time.Duration, class string) {
	d.operations.WithLabelValues(driver, operation).Observe(took.Seconds())
	if class != "" {
		d.failures.WithLabelValues(driver, operation, bounded(class, ErrorClasses(), "unknown")).Inc()
	}
}
