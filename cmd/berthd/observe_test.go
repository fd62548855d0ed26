package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/control"
	"berth.dev/berth/metrics"
	"berth.dev/berth/snapshotter"
	"berth.dev/berth/stage"
)

func TestMissReasons(t *testing.T) {
	reasons := metrics.MissReasons()
	for _, r := range []stage.MissReason{stage.MissNoDisk, stage.MissNotOnDisk, stage.MissNotReady, stage.MissDraining, stage.MissFailed, stage.MissContradiction} {
		require.Contains(t, reasons, string(r), "a reason of the stage is no label")
		require.Equal(t, string(r), missReason(fmt.Errorf("acquire: %w", &stage.MissError{Reason: r})))
	}
	require.Equal(t, reasonProtocol, missReason(fmt.Errorf("parent unknown: %w", errdefs.ErrFailedPrecondition)))
	require.Equal(t, string(stage.MissNotOnDisk), missReason(errdefs.ErrNotFound))
	require.Equal(t, reasonError, missReason(errors.New("disk on fire")))
	require.Contains(t, reasons, reasonProtocol)
	require.Contains(t, reasons, reasonError)
}

func TestErrorClasses(t *testing.T) {
	require.Empty(t, errorClass(nil))
	for err, want := range map[error]string{
		context.DeadlineExceeded: "deadline", context.Canceled: "canceled", errdefs.ErrUnavailable: "unavailable",
		errdefs.ErrDataLoss: "data-loss", errdefs.ErrFailedPrecondition: "failed-precondition", errors.New("x"): "unknown",
	} {
		got := errorClass(fmt.Errorf("attach: %w", err))
		require.Equal(t, want, got)
		require.True(t, slices.Contains(metrics.ErrorClasses(), got), got)
	}
}

func TestObserverTellsLedgerAndMetrics(t *testing.T) {
	registry, ledger := prometheus.NewRegistry(), control.NewLedger()
	o := observer{metrics: metrics.New(registry, "v1"), ledger: ledger}
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	o.Hit(t.Context(), snapshotter.Hit{Layer: snapshotter.LayerRequest{ChainID: a, ImageRef: "r"}, DiskUUID: "u", MatchedBy: snapshotter.MatchDiffID, BlobSize: 7})
	o.Miss(t.Context(), snapshotter.Miss{Layer: snapshotter.LayerRequest{ChainID: b}, Err: &stage.MissError{Reason: stage.MissFailed}})
	o.Miss(t.Context(), snapshotter.Miss{Layer: snapshotter.LayerRequest{ChainID: c}, Err: errors.New("disk on fire")})
	o.StepDone(stage.StepMount, time.Second, nil)
	watcher := ledger.Watch(t.Context())
	o.DiskFailed("base", 3, errors.New("input/output error"))
	event := (<-watcher.Events).Event
	require.Equal(t, control.DiskFailed, event.Kind)
	require.Equal(t, "base", event.Disk)
	require.Equal(t, "input/output error; 3 snapshots use it", event.Detail)

	require.Equal(t, control.Counts{Hits: map[string]uint64{"diff-id": 1}, Misses: map[string]uint64{"disk-failed": 1, "error": 1}, BytesNotPulled: 7}, ledger.Counts())
	require.Equal(t, "r", ledger.Last(a).ImageRef)
	require.Equal(t, control.Failure, ledger.Last(c).Kind)
	require.Equal(t, "disk on fire", ledger.Last(c).Detail)
}

func TestDiskTotals(t *testing.T) {
	got := diskTotals([]stage.DiskStatus{
		{State: stage.StateInUse, Serving: true, Layers: 5, LayersInUse: 2, Holders: 3},
		{State: stage.StateFailed, Layers: 7, LayersInUse: 1, Holders: 1},
	})
	require.Equal(t, metrics.DiskTotals{ByState: map[string]int{"in-use": 1, "failed": 1}, Layers: 5, LayersInUse: 3, Adopted: 4}, got)
}
