package metrics_test

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/metrics"
)

func TestImageSnapshotMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	m := metrics.RegisterImageSnapshots(r, metrics.ImageSnapshotWords{
		Reasons: []string{"Ready", "BuildFailed", "Unused"}, Endings: []string{"expired"}, Automatic: []string{"asked", "denied"},
	})
	metrics.RegisterImageSnapshotTotals(r, func() (metrics.ImageSnapshotTotals, error) {
		return metrics.ImageSnapshotTotals{ByPhase: map[string]int{"Available": 3, "Failed": 0}, Automatic: 1, Owners: 2, MostOfOwner: 2, Quota: 50}, nil
	})
	for range 3 {
		m.BuildStarted()
	}
	m.BuildEnded("Ready", time.Minute, 1000, 500)
	m.BuildEnded("BuildFailed", time.Second, 0, 0)
	m.BuildEnded("image registry.example/x is gone", time.Second, 0, 0)
	m.Matched()
	m.Ended("expired", "Unused")
	m.Ended("nightly", "sha256:x")
	m.Swept(3, 2, 1)
	m.Automatic("asked")
	m.Automatic("something new")

	got := samples(t, r)
	for name, want := range map[string]float64{
		"berth_image_snapshot_builds_started_total{}":        3,
		"berth_image_snapshot_builds_total{Ready}":           1,
		"berth_image_snapshot_builds_total{BuildFailed}":     1,
		"berth_image_snapshot_builds_total{other}":           1,
		"berth_image_snapshot_build_duration_seconds{Ready}": 1,
		"berth_image_snapshot_fetched_bytes_total{}":         1000,
		"berth_image_snapshot_reused_bytes_total{}":          500,
		"berth_image_snapshot_matches_total{}":               1,
		"berth_image_snapshots_ended_total{expired,Unused}":  1,
		"berth_image_snapshots_ended_total{other,other}":     1,
		"berth_image_snapshot_sweeps_total{}":                1,
		"berth_image_snapshot_sweep_findings_total{orphan}":  3,
		"berth_image_snapshot_sweep_findings_total{deleted}": 2,
		"berth_image_snapshot_sweep_findings_total{lost}":    1,
		"berth_automatic_image_snapshots_total{asked}":       1,
		"berth_automatic_image_snapshots_total{denied}":      0,
		"berth_automatic_image_snapshots_total{other}":       1,
		"berth_image_snapshots{Available}":                   3,
		"berth_image_snapshots{Failed}":                      0,
		"berth_image_snapshots_automatic{}":                  1,
		"berth_image_snapshot_owners{}":                      2,
		"berth_image_snapshot_quota_used{}":                  2,
		"berth_image_snapshot_quota{}":                       50,
	} {
		value, ok := got[name]
		require.True(t, ok, "%s is missing", name)
		require.InDelta(t, want, value, 0, name)
	}
	families, err := r.Gather()
	require.NoError(t, err)
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestImageSnapshotsThatCannotBeCounted(t *testing.T) {
	r := prometheus.NewRegistry()
	metrics.RegisterImageSnapshotTotals(r, func() (metrics.ImageSnapshotTotals, error) {
		return metrics.ImageSnapshotTotals{}, errors.New("no answer")
	})
	_, err := r.Gather()
	require.ErrorContains(t, err, "no answer")
}
