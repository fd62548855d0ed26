// Package metrics has berthd's Prometheus metrics. Every label has a bounded set of values: names of disks, digests and
// references never become labels.
package metrics

import (
	"context"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Metrics of one daemon. It is safe for concurrent use.
type Metrics struct {
	hits      *prometheus.CounterVec
	misses    *prometheus.CounterVec
	bytes     prometheus.Counter
	steps     *prometheus.HistogramVec
	stepFails *prometheus.CounterVec
	diskFails prometheus.Counter
	requests  *prometheus.CounterVec
	latency   *prometheus.HistogramVec
}

// MissReasons are the values of the label "reason"; any other is counted as "other".
func MissReasons() []string {
	return []string{
		"no-disk", "not-on-disk", "disk-not-ready", "disk-draining", "disk-failed", "contradiction", "protocol", "error", "other",
	}
}

// New registers the metrics, and those of the process and the Go runtime.
func New(registry prometheus.Registerer, version string) *Metrics {
	m := &Metrics{
		hits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_layer_hits_total",
			Help: "Layers that containerd need not pull because a disk has them, by what recognised them.",
		}, []string{"matched_by"}),
		misses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_layer_misses_total",
			Help: "Layers that containerd has to pull, by reason.",
		}, []string{"reason"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_layer_bytes_not_pulled_total",
			Help: "Compressed bytes that the registry did not have to send, as far as their number was known.",
		}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_stage_step_duration_seconds",
			Help:    "Time that a step of attaching or detaching a disk took.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60},
		}, []string{"step"}),
		stepFails: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_stage_errors_total",
			Help: "Steps of attaching or detaching a disk that failed, by step and class of error.",
		}, []string{"step", "class"}),
		diskFails: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_disk_failures_total",
			Help: "Times that a disk that served gave errors or went away and was taken out of service.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_grpc_requests_total",
			Help: "Requests on the socket, by method and gRPC code.",
		}, []string{"method", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_grpc_request_duration_seconds",
			Help:    "Time that a request on the socket took.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .05, .25, 1, 5},
		}, []string{"method"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "berth_build_info",
		Help:        "1, with the version of berthd and of Go.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version()},
	})
	build.Set(1)
	registry.MustRegister(m.hits, m.misses, m.bytes, m.steps, m.stepFails, m.diskFails, m.requests, m.latency, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, reason := range MissReasons() {
		m.misses.WithLabelValues(reason) // 0 is more telling than nothing
	}
	return m
}

// Hit counts a layer found on a disk. matchedBy is one of a fixed set; bytes is 0 if unknown.
func (m *Metrics) Hit(matchedBy string, bytes int64) {
	m.hits.WithLabelValues(matchedBy).Inc()
	m.bytes.Add(float64(max(bytes, 0)))
}

// Miss counts a layer that no disk served.
func (m *Metrics) Miss(reason string) {
	m.misses.WithLabelValues(bounded(reason, MissReasons(), "other")).Inc()
}

// DiskFailed counts a disk that was taken out of service.
func (m *Metrics) DiskFailed() { m.diskFails.Inc() }

// Step records how long a step of a disk's way took. class is empty if it succeeded.
func (m *Metrics) Step(step string, took time.Duration, class string) {
	m.steps.WithLabelValues(step).Observe(took.Seconds())
	if class != "" {
		m.stepFails.WithLabelValues(step, bounded(class, ErrorClasses(), "unknown")).Inc()
	}
}

func bounded(value string, allowed []string, other string) string {
	if slices.Contains(allowed, value) {
		return value
	}
	return other
}

// UnaryInterceptor counts and times requests. Only registered methods reach it, so the label is bounded.
func (m *Metrics) UnaryInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		start := time.Now()
		resp, err := handler(ctx, req)
		m.latency.WithLabelValues(info.FullMethod).Observe(time.Since(start).Seconds())
		m.requests.WithLabelValues(info.FullMethod, status.Code(err).String()).Inc()
		return resp, err
	}
}
