package lifecycle_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// TestAutomatic is E-5: one per image set, however many ask.
func TestAutomatic(t *testing.T) {
	newWorld(t, func(w *world) {
		ids := make(chan string, 20)
		for i := range cap(ids) {
			images := []string{"a:1", refC}
			if i%2 == 1 {
				images = []string{"docker.io/library/c:1", "docker.io/library/a:1"}
			}
			go func() {
				r, err := w.engine.EnsureAutomatic(w.Context(), lifecycle.AutomaticRequest{Images: images})
				if err != nil {
					ids <- err.Error()
					return
				}
				ids <- r.Object.ID
			}()
		}
		first := <-ids
		for range cap(ids) - 1 {
			require.Equal(t, first, <-ids)
		}
		s, err := w.engine.Find(t.Context(), first)
		require.NoError(t, err)
		require.Equal(t, imagesnapshot.OriginAutomatic, s.Origin)
		s = w.await(s.Name, imagesnapshot.PhaseAvailable)
		require.Len(t, w.builder.builds, 1)
		require.EqualValues(t, 3*5*5<<30, s.Status.VolumeSnapshots[0].SizeBytes, "Q15: three times the five compressed layers")

		other, err := w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Owner: "other", Images: []string{refA, refC}})
		require.NoError(t, err)
		require.NotEqual(t, s.Name, other.Object.Name, "owners share nothing")
	})
}

// Automatic ones make room for one another within a quota of their own, and never take that of those which people made.
func TestQuotaOfAutomaticOnes(t *testing.T) {
	newWorld(t, func(w *world) {
		ensure := func(ref string) (*imagesnapshot.ImageSnapshot, error) {
			r, err := w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Images: []string{ref}})
			return r.Object, err
		}
		lru := spec(refA)
		lru.Elimination = imagesnapshot.EliminationLRU
		w.create("manual", lru)
		w.await("manual", imagesnapshot.PhaseAvailable)
		w.settle(time.Hour)
		first, err := ensure(refA)
		require.NoError(t, err)
		w.await(first.Name, imagesnapshot.PhaseAvailable)
		second, err := ensure(refAB)
		require.NoError(t, err)
		w.await(second.Name, imagesnapshot.PhaseAvailable)
		w.settle(time.Hour)
		_, err = ensure(refC)
		require.NoError(t, err, "the first can go")
		w.awaitGone(first.Name)
		require.Equal(t, imagesnapshot.PhaseAvailable, w.get("manual").Status.Phase, "though it was used less recently")

		w.restart()
		fourth, err := ensure(refA)
		require.NoError(t, err)
		w.await(fourth.Name, imagesnapshot.PhaseAvailable)
		w.awaitGone(second.Name)
		w.get("manual")
	}, func(w *world) { w.cfg.Limits.MaxAutomatic, w.cfg.Limits.MaxPerOwner = 2, 4 })
}

// While all of them are being built none can go.
func TestQuotaOfAutomaticOnesThatAreBuilt(t *testing.T) {
	newWorld(t, func(w *world) {
		_, err := w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Images: []string{refA}})
		require.NoError(t, err)
		_, err = w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Images: []string{refC}})
		require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
		require.ErrorContains(t, err, "1 automatic image snapshots are allowed")
		dry, err := w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Owner: "other", Images: []string{refC}, DryRun: true})
		require.NoError(t, err, "quotas are per owner")
		_, err = w.store.Get(t.Context(), dry.Object.Name)
		require.True(t, errdefs.IsNotFound(err))
	}, func(w *world) { w.cfg.Limits.MaxAutomatic = 1 })
}
