package daemon

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/diskfailures"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/snapshotter"
)

func TestMissReasons(t *testing.T) {
	reasons := metrics.MissReasons()
	for _, r := range []stage.MissReason{stage.MissNoDisk, stage.MissNotOnDisk, stage.MissNotReady, stage.MissDraining, stage.MissFailed, stage.MissContradiction} {
		require.Contains(t, reasons, string(r), "a reason of the stage is no label")
		require.Equal(t, string(r), missReason(fmt.Errorf("acquire: %w", &stage.MissError{Reason: r})))
	}
	require.Equal(t, events.ReasonProtocol, missReason(fmt.Errorf("parent unknown: %w", errdefs.ErrFailedPrecondition)))
	require.Equal(t, string(stage.MissNotOnDisk), missReason(errdefs.ErrNotFound))
	require.Equal(t, events.ReasonError, missReason(errors.New("disk on fire")))
	require.Contains(t, reasons, events.ReasonProtocol)
	require.Contains(t, reasons, events.ReasonError)
}

func TestObserverTellsLedgerAndMetrics(t *testing.T) {
	registry, ledger := prometheus.NewRegistry(), events.NewLedger()
	m := metrics.New(registry, "v1")
	o := layerObserver{m, ledger}
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	o.Hit(t.Context(), snapshotter.Hit{Layer: snapshotter.LayerRequest{LayerName: layerdisk.LayerName{ChainID: a}, ImageRef: "r"}, DiskUUID: "u", MatchedBy: layerdisk.MatchDiffID, BlobSize: 7})
	o.Miss(t.Context(), snapshotter.Miss{Layer: snapshotter.LayerRequest{LayerName: layerdisk.LayerName{ChainID: b}}, Err: &stage.MissError{Reason: stage.MissFailed}})
	o.Miss(t.Context(), snapshotter.Miss{Layer: snapshotter.LayerRequest{LayerName: layerdisk.LayerName{ChainID: c}}, Err: errors.New("disk on fire")})
	diskObserver{m, diskfailures.New(ledger)}.StepDone(stage.StepMount, time.Second, nil)
	require.Equal(t, events.Counts{Hits: map[layerdisk.Match]uint64{layerdisk.MatchDiffID: 1}, Misses: map[string]uint64{"disk-failed": 1, "error": 1}, BytesNotPulled: 7}, ledger.Counts())
	require.Equal(t, "r", ledger.Last(a).ImageRef)
	require.Equal(t, events.Failure, ledger.Last(c).Kind)
	require.Equal(t, "disk on fire", ledger.Last(c).Detail)
}

func TestDiskTotals(t *testing.T) {
	got := diskTotals([]disks.Disk{
		{DiskStatus: stage.DiskStatus{State: stage.StateInUse, Serving: true, Layers: 5, LayersInUse: 2, Holders: 3}},
		{DiskStatus: stage.DiskStatus{State: stage.StateFailed, Layers: 7, LayersInUse: 1, Holders: 1}},
		{DiskStatus: stage.DiskStatus{State: disks.StateWaiting}, Configured: true},
	})
	require.Equal(t, metrics.DiskTotals{ByState: map[string]int{"in-use": 1, "failed": 1, "waiting": 1}, Layers: 5, LayersInUse: 3, Adopted: 4}, got)
}
