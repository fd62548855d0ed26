package main

import (
	"context"
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
	o := observer{metrics: metrics.New(registry, "v1"), ledger: ledger}
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	o.Hit(t.Context(), snapshotter.Hit{Layer: snapshotter.LayerRequest{LayerName: layerdisk.LayerName{ChainID: a}, ImageRef: "r"}, DiskUUID: "u", MatchedBy: layerdisk.MatchDiffID, BlobSize: 7})
	o.Miss(t.Context(), snapshotter.Miss{Layer: snapshotter.LayerRequest{LayerName: layerdisk.LayerName{ChainID: b}}, Err: &stage.MissError{Reason: stage.MissFailed}})
	o.Miss(t.Context(), snapshotter.Miss{Layer: snapshotter.LayerRequest{LayerName: layerdisk.LayerName{ChainID: c}}, Err: errors.New("disk on fire")})
	o.StepDone(stage.StepMount, time.Second, nil)
	require.Equal(t, events.Counts{Hits: map[layerdisk.Match]uint64{layerdisk.MatchDiffID: 1}, Misses: map[string]uint64{"disk-failed": 1, "error": 1}, BytesNotPulled: 7}, ledger.Counts())
	require.Equal(t, "r", ledger.Last(a).ImageRef)
	require.Equal(t, events.Failure, ledger.Last(c).Kind)
	require.Equal(t, "disk on fire", ledger.Last(c).Detail)
}

// A disk that fails is told of with its image snapshot: the one it was attached for, also if no catalog has that any
// more, or the one that a catalog knows it by. What is told while nobody listens yet waits, and what is too much is
// told without.
func TestDiskFailuresNameTheImageSnapshot(t *testing.T) {
	ledger := events.NewLedger()
	o := observer{metrics: metrics.New(prometheus.NewRegistry(), "v1"), ledger: ledger, failures: newDiskFailures(ledger)}
	watcher := ledger.Watch(t.Context())
	broken := errors.New("input/output error")
	o.DiskFailed(stage.DiskStatus{Name: "nightly-1", UUID: "u", Holders: 3, ImageSnapshot: stage.ImageSnapshot{Name: "nightly", ID: "1"}}, broken)
	o.DiskFailed(stage.DiskStatus{Name: "byhand", UUID: "known"}, broken)
	o.DiskFailed(stage.DiskStatus{Name: "other", UUID: "unknown"}, broken)

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	notes := make(chan string, 10)
	go func() {
		defer close(ended)
		o.failures.run(ctx, func(uuid string) (name, id string, ok bool) {
			return map[string]string{"known": "weekly"}[uuid], map[string]string{"known": "2"}[uuid], uuid == "known"
		}, func(_ context.Context, name, id, message string) error {
			notes <- name + " " + id + ": " + message
			return errors.New("that this fails is logged only")
		})
	}()
	for _, want := range []events.Event{
		{Disk: "nightly-1", ImageSnapshot: "nightly", Detail: "input/output error; 3 snapshots use it"},
		{Disk: "byhand", ImageSnapshot: "weekly", Detail: "input/output error; 0 snapshots use it"},
		{Disk: "other", Detail: "input/output error; 0 snapshots use it"},
	} {
		got := (<-watcher.Events).Event
		want.Kind, want.Time = events.DiskFailed, got.Time
		require.Equal(t, want, got)
	}
	require.Equal(t, "nightly 1: its disk nightly-1 on this node is out of service, 3 snapshots use it: input/output error", <-notes)
	require.Equal(t, "weekly 2: its disk byhand on this node is out of service, 0 snapshots use it: input/output error", <-notes)
	cancel()
	<-ended
	require.Empty(t, notes)

	for range maxFailures + 1 {
		o.DiskFailed(stage.DiskStatus{Name: "many"}, broken)
	}
	require.Equal(t, "many", (<-watcher.Events).Event.Disk)
}

func TestDiskTotals(t *testing.T) {
	got := diskTotals([]stage.DiskStatus{
		{State: stage.StateInUse, Serving: true, Layers: 5, LayersInUse: 2, Holders: 3},
		{State: stage.StateFailed, Layers: 7, LayersInUse: 1, Holders: 1},
	})
	require.Equal(t, metrics.DiskTotals{ByState: map[string]int{"in-use": 1, "failed": 1}, Layers: 5, LayersInUse: 3, Adopted: 4}, got)
}
