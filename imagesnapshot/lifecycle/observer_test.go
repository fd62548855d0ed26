package lifecycle_test

import (
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// watcher is an observer that remembers.
type watcher struct {
	mu sync.Mutex
	told
}

// told is what it remembers.
type told struct {
	started, matched int
	builds           []lifecycle.BuildOutcome
	ended            map[lifecycle.Ending][]imagesnapshot.Reason
	orphans          int
}

func (w *watcher) locked(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

// now is a copy of what was told so far.
func (w *watcher) now() (seen told) {
	w.locked(func() {
		seen.started, seen.matched, seen.orphans = w.started, w.matched, w.orphans
		seen.builds, seen.ended = slices.Clone(w.builds), maps.Clone(w.ended)
	})
	return seen
}

func (w *watcher) BuildStarted() { w.locked(func() { w.started++ }) }
func (w *watcher) BuildEnded(o lifecycle.BuildOutcome) {
	w.locked(func() { w.builds = append(w.builds, o) })
}
func (w *watcher) Matched()                      { w.locked(func() { w.matched++ }) }
func (w *watcher) Swept(r lifecycle.SweepReport) { w.locked(func() { w.orphans += len(r.Orphans) }) }
func (w *watcher) Ended(e lifecycle.Ending, reason imagesnapshot.Reason) {
	w.locked(func() { w.ended[e] = append(w.ended[e], reason) })
}

// Everything is told once, with the time and the bytes that it took.
func TestObserver(t *testing.T) {
	seen := &watcher{told: told{ended: map[lifecycle.Ending][]imagesnapshot.Reason{}}}
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.RetentionDays = 1
		w.create("one", sp)
		one := w.await("one", imagesnapshot.PhaseAvailable)
		require.Equal(t, 1, seen.now().started)
		require.Equal(t, []lifecycle.BuildOutcome{{Reason: imagesnapshot.ReasonReady, Took: time.Minute, FetchedBytes: 1000}}, seen.now().builds)

		reuse := spec(refAB)
		reuse.ReuseLayers = true
		w.create("two", reuse)
		w.await("two", imagesnapshot.PhaseAvailable)
		require.EqualValues(t, 500, seen.now().builds[1].ReusedBytes)
		w.builder.set(0, errdefs.ErrUnauthenticated)
		_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "two", Spec: spec(refC)})
		require.NoError(t, err)
		w.await("two", imagesnapshot.PhaseUpdateFailed)
		require.Equal(t, 3, seen.now().started)
		require.Equal(t, imagesnapshot.ReasonImageUnavailable, seen.now().builds[2].Reason)
		require.Zero(t, seen.now().builds[2].FetchedBytes)

		w.engine.RecordMatch("one", one.ID)
		w.engine.RecordMatch("one", one.ID)
		require.Equal(t, 2, seen.now().matched)
		_, err = w.fake.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: one.Status.VolumeSnapshotName[:len("berth-000000000000-")] + "v-0123456789abcdef0123456789abcdef-1", SizeBytes: 4096})
		require.NoError(t, err)
		w.settle(20 * time.Minute)
		require.Equal(t, 1, seen.now().orphans)

		w.settle(25 * time.Hour)
		w.awaitGone("one")
		_, err = w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "two"})
		require.NoError(t, err)
		w.awaitGone("two")
		require.Equal(t, map[lifecycle.Ending][]imagesnapshot.Reason{
			lifecycle.EndingExpired: {imagesnapshot.ReasonExpired},
			lifecycle.EndingDeleted: {imagesnapshot.ReasonKeptLongEnough, imagesnapshot.ReasonDeleteRequested},
		}, seen.now().ended)
	}, func(w *world) { w.cfg.Observer = seen })
}
