package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/metrics"
)

func TestErrorClasses(t *testing.T) {
	require.Empty(t, metrics.ErrorClass(nil))
	for err, want := range map[error]string{
		context.DeadlineExceeded: "deadline", context.Canceled: "canceled", errdefs.ErrUnavailable: "unavailable",
		errdefs.ErrDataLoss: "data-loss", errdefs.ErrFailedPrecondition: "failed-precondition", errors.New("x"): "unknown",
	} {
		got := metrics.ErrorClass(fmt.Errorf("attach: %w", err))
		require.Equal(t, want, got)
		require.Contains(t, metrics.ErrorClasses(), got)
	}
}

// Every attempt at an operation of a driver is timed, and those that failed are counted by class.
func TestDrivers(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.RegisterDrivers(registry)
	m.Operation("loop", "Attach", time.Second, "")
	m.Operation("loop", "Attach", 2*time.Second, "unavailable")
	m.Operation("cloud", "Attach", time.Second, "not a class")
	require.Equal(t, map[string]float64{
		"berth_driver_operation_duration_seconds{loop,Attach}":  2,
		"berth_driver_operation_duration_seconds{cloud,Attach}": 1,
		"berth_driver_errors_total{unavailable,loop,Attach}":    1,
		"berth_driver_errors_total{unknown,cloud,Attach}":       1,
	}, samples(t, registry))
}
