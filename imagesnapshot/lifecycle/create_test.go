package lifecycle_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// TestCreate is also C-47, C-50, C-51 and A-10: status with digests and sizes, and the volume snapshot's ID and name.
// TestCreate is a life up to its use: accepted at once, usable when it is complete (E-26), kept for ever (A-7,
// Q7), with what is on the disk (C-47), one volume snapshot (C-50, C-51, E-29) and the time of the last change (C-49).
func TestCreate(t *testing.T) {
	newWorld(t, func(w *world) {
		w.ready = 0
		begin := time.Now().UTC()
		s := w.create("one", spec("a:1", refC))
		require.Equal(t, imagesnapshot.PhasePending, s.Status.Phase)
		w.settle(30 * time.Second)
		s = w.get("one")
		require.Equal(t, imagesnapshot.PhaseCreating, s.Status.Phase)
		require.Greater(t, s.Status.Progress, 0)
		require.Less(t, s.Status.Progress, 100)
		require.False(t, s.Usable(time.Now(), true), "E-26")

		s = w.await("one", imagesnapshot.PhaseAvailable)
		require.True(t, s.Usable(time.Now(), false))
		require.Equal(t, 100, s.Status.Progress)
		require.Equal(t, begin.Add(time.Minute), s.Status.Ready)
		require.Equal(t, begin.Add(time.Minute), s.Status.LastUpdated)
		require.Zero(t, s.Status.Expires, "A-7: no retention is for ever")
		require.Equal(t, refA, s.Spec.Images[0], "A-12")
		ix := layerdisktest.Index("erofs", layerdisktest.Image{Reference: refA, Layers: []string{"base", "a"}})
		require.Equal(t, imagesnapshot.Image{
			Reference: refA, Platform: "linux/amd64", Digest: ix.Images[0].Manifest.Digest, SizeBytes: 2 << 30, Layers: 2,
		}, s.Status.Images[0])
		require.Equal(t, 5, s.Status.Layers)
		require.Len(t, s.Status.VolumeSnapshots, 1)
		require.Equal(t, s.Status.VolumeSnapshots[0].ID, s.Status.VolumeSnapshotID)
		require.Equal(t, s.Status.VolumeSnapshots[0].Name, s.Status.VolumeSnapshotName)
		require.EqualValues(t, 20<<30, s.Status.VolumeSnapshots[0].SizeBytes)
		require.Contains(t, reasons(s), imagesnapshot.ReasonReady)
		w.requireStorage(s)
		w.requireContent(s)
	})
}

func TestCopies(t *testing.T) {
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.Copies.Standard = 3
		w.create("one", sp)
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.Len(t, s.Status.VolumeSnapshots, 3)
		w.requireStorage(s)
		w.requireContent(s)
	})
}

// TestClientToken makes repeating a create safe, over restarts too, and tells another request with it from a repeated
// one.
func TestClientToken(t *testing.T) {
	newWorld(t, func(w *world) {
		req := lifecycle.CreateRequest{Name: "one", ClientToken: "token", Spec: spec(refA)}
		first, err := w.engine.Create(t.Context(), req)
		require.NoError(t, err)
		require.False(t, first.Existing)
		again, err := w.engine.Create(t.Context(), req)
		require.NoError(t, err)
		require.True(t, again.Existing)
		require.Equal(t, first.Object.ID, again.Object.ID)
		w.await("one", imagesnapshot.PhaseAvailable)
		w.restart()
		again, err = w.engine.Create(t.Context(), req)
		require.NoError(t, err, "after a restart")
		require.Equal(t, first.Object.ID, again.Object.ID)

		other := req
		other.Spec = spec(refC)
		_, err = w.engine.Create(t.Context(), other)
		require.True(t, errdefs.IsConflict(err), "%v", err)
		other = req
		other.ClientToken = "another"
		_, err = w.engine.Create(t.Context(), other)
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		other = req
		other.Name, other.Owner = "two", "somebody"
		two, err := w.engine.Create(t.Context(), other)
		require.NoError(t, err, "tokens are per owner")
		require.False(t, two.Existing)
	})
}

func TestCreateRefusesAndDryRun(t *testing.T) {
	newWorld(t, func(w *world) {
		_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "Bad", Spec: spec(refA)})
		require.ErrorAs(t, err, new(*imagesnapshot.FieldError))
		r, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "one", Spec: spec(refA), DryRun: true})
		require.NoError(t, err)
		require.Equal(t, "one", r.Object.Name)
		w.settle(time.Minute)
		_, err = w.store.Get(t.Context(), "one")
		require.True(t, errdefs.IsNotFound(err))
	})
}

// TestSizeWarning is A-6: less than three times the images is remarked on and no more.
func TestSizeWarning(t *testing.T) {
	newWorld(t, func(w *world) {
		w.builder.layers["docker.io/library/big:1"] = []string{"1", "2", "3", "4", "5", "6", "7"}
		w.create("small", spec(refA))
		s := w.await("small", imagesnapshot.PhaseAvailable)
		require.NotContains(t, reasons(s), imagesnapshot.ReasonWarning)
		w.create("big", spec("big:1"))
		s = w.await("big", imagesnapshot.PhaseAvailable)
		require.Contains(t, reasons(s), imagesnapshot.ReasonWarning, "7 GiB on 20")
		for _, e := range s.Status.Events {
			if e.Reason == imagesnapshot.ReasonWarning {
				require.Contains(t, e.Message, "spec.size.gib: 20 GiB is less than 3 times the 7.0 GiB of the images")
			}
		}
	})
}

// TestQuota is A-3.
func TestQuota(t *testing.T) {
	newWorld(t, func(w *world) {
		for i := range 50 {
			w.create(fmt.Sprintf("n%d", i), spec(refA))
		}
		_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "more", Spec: spec(refA)})
		require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
		_, err = w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "more", Owner: "other", Spec: spec(refA)})
		require.NoError(t, err, "per owner")
		_, err = w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "n7"})
		require.NoError(t, err)
		w.create("instead", spec(refA))
	})
}

// TestElimination is ECI's EliminationStrategy: only those marked LRU go, the least recently matched first.
func TestElimination(t *testing.T) {
	newWorld(t, func(w *world) {
		lru := spec(refA)
		lru.Elimination = imagesnapshot.EliminationLRU
		w.create("kept", spec(refA))
		for _, name := range []string{"old", "used"} {
			w.create(name, lru)
			w.await(name, imagesnapshot.PhaseAvailable)
			w.settle(time.Hour)
		}
		w.engine.RecordMatch("old", w.get("old").ID)
		w.settle(time.Hour)
		w.engine.RecordMatch("used", w.get("used").ID)
		w.settle(time.Hour)
		w.create("new", lru)
		w.awaitGone("old")
		w.await("new", imagesnapshot.PhaseAvailable)
		w.get("used")
		w.get("kept")
	}, func(w *world) { w.cfg.Limits.MaxPerOwner = 3 })
}

func TestEliminationSurvivesRestart(t *testing.T) {
	for at := 1; at <= 12; at++ {
		newWorld(t, func(w *world) {
			lru := spec(refA)
			lru.Elimination = imagesnapshot.EliminationLRU
			w.create("old", lru)
			w.await("old", imagesnapshot.PhaseAvailable)
			w.stop()
			w.start(at, true)
			w.ask(func() error {
				_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "new", ClientToken: "new", Spec: lru})
				return err
			})
			s := w.survive("new", imagesnapshot.PhaseAvailable)
			w.awaitGone("old")
			w.requireStorage(s)
		}, func(w *world) { w.cfg.Limits.MaxPerOwner = 1 })
	}
}
