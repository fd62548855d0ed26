package metrics_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/internal/metrics"
)

// samples are the values of counters and gauges, and the numbers of observations of histograms, by name{label,…}.
func samples(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	all := map[string]float64{}
	for _, f := range families {
		require.NotEmpty(t, f.GetHelp(), f.GetName())
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			name := f.GetName() + "{" + strings.Join(labels, ",") + "}"
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

func TestMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	m := metrics.New(r, "v1.2.3")
	m.Hit("chain-id", 1000)
	m.Hit("blob", 0)
	m.Hit("blob", -5)
	m.Miss("no-disk")
	m.Miss("something new")
	m.Miss("sha256:with-a-digest")
	m.Step("attach", time.Second, "")
	m.Step("attach", time.Second, "unavailable")
	m.Step("mount", time.Second, "strange")
	m.DiskFailed()
	metrics.RegisterDisks(r, func() (metrics.DiskTotals, error) {
		return metrics.DiskTotals{ByState: map[string]int{"idle": 2, "failed": 1}, Layers: 30, LayersInUse: 4, Adopted: 9}, nil
	})
	o := metrics.RegisterOnDemand(r, []string{"attach", "none"}, []string{"ready"}, func() int { return 7 })
	i := metrics.RegisterImports(r, []string{"registered", "left"})
	i.Image("registered")
	i.Image("registered")
	i.Image("registry.example/image")
	o.Chosen("attach")
	o.Chosen("new")
	o.Attached("ready", time.Second)
	h := metrics.RegisterReadAhead(r, []string{"done", "failed"}, func() metrics.ReadAheadTotals {
		return metrics.ReadAheadTotals{Bytes: 5000, Reads: 4, Skipped: 3, Running: 2, Waiting: 1}
	})
	h.Ended("done", time.Second)
	h.Ended("new", time.Second)
	o.Attached("registry.example/image", time.Second)
	intercept := m.UnaryInterceptor()
	info := &grpc.UnaryServerInfo{FullMethod: "/s/M"}
	for _, err := range []error{nil, status.Error(codes.AlreadyExists, "there")} {
		_, got := intercept(t.Context(), nil, info, func(context.Context, any) (any, error) { return "x", err })
		require.Equal(t, err, got)
	}

	got := samples(t, r)
	for name, want := range map[string]float64{
		"berth_layer_hits_total{chain-id}":             1,
		"berth_layer_hits_total{blob}":                 2,
		"berth_layer_bytes_not_pulled_total{}":         1000,
		"berth_layer_misses_total{no-disk}":            1,
		"berth_layer_misses_total{other}":              2,
		"berth_layer_misses_total{disk-failed}":        0,
		"berth_stage_step_duration_seconds{attach}":    2,
		"berth_stage_errors_total{unavailable,attach}": 1,
		"berth_stage_errors_total{unknown,mount}":      1,
		"berth_disk_failures_total{}":                  1,
		"berth_disks{idle}":                            2,
		"berth_disks{failed}":                          1,
		"berth_layers{}":                               30,
		"berth_layers_in_use{}":                        4,
		"berth_adopted_snapshots{}":                    9,
		"berth_image_imports_total{registered}":        2,
		"berth_image_imports_total{left}":              0,
		"berth_image_imports_total{other}":             1,
		"berth_choices_total{attach}":                  1,
		"berth_choices_total{none}":                    0,
		"berth_choices_total{other}":                   1,
		"berth_catalog_entries{}":                      7,
		"berth_read_ahead_bytes_total{}":               5000,
		"berth_read_ahead_reads_total{}":               4,
		"berth_read_ahead_skipped_total{}":             3,
		"berth_read_ahead_starts{running}":             2,
		"berth_read_ahead_starts{waiting}":             1,
		"berth_read_ahead_duration_seconds{done}":      1,
		"berth_read_ahead_duration_seconds{failed}":    0,
		"berth_read_ahead_duration_seconds{other}":     1,

		"berth_on_demand_attach_duration_seconds{ready}": 1,
		"berth_on_demand_attach_duration_seconds{other}": 1,
		"berth_grpc_requests_total{OK,/s/M}":             1,
		"berth_grpc_requests_total{AlreadyExists,/s/M}":  1,
		"berth_grpc_request_duration_seconds{/s/M}":      2,
	} {
		value, ok := got[name]
		require.True(t, ok, "%s is missing", name)
		require.InDelta(t, want, value, 0, name)
	}
	for name := range got {
		require.NotContains(t, name, "sha256")
		require.True(t, strings.HasPrefix(name, "berth_") || strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_"), name)
	}
}

func TestDisksThatCannotBeCounted(t *testing.T) {
	r := prometheus.NewRegistry()
	metrics.RegisterDisks(r, func() (metrics.DiskTotals, error) { return metrics.DiskTotals{}, errors.New("no answer") })
	_, err := r.Gather()
	require.ErrorContains(t, err, "no answer")
}
