package lifecycle_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// TestReuse is E-22, Q9: an image snapshot that asks for it, and no other, starts from the disk of its owner that
// shares most with it.
func TestReuse(t *testing.T) {
	newWorld(t, func(w *world) {
		owner := func(name, owner string, images ...string) *imagesnapshot.ImageSnapshot {
			sp := spec(images...)
			sp.ReuseLayers = true
			_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: name, Owner: owner, Spec: sp})
			require.NoError(t, err)
			return w.await(name, imagesnapshot.PhaseAvailable)
		}
		owner("foreign", "other", refAB)
		first := owner("first", "", refA)
		require.Empty(t, first.Status.BaseName, "another tenant's disk is never started from")
		owner("unrelated", "", refC)
		// Half of what is on "wide" is of no use to what follows, and less of it is shared than of "first".
		owner("wide", "", refA, refC)
		s := owner("second", "", refAB)
		require.Equal(t, "first", s.Status.BaseName)
		require.EqualValues(t, 500, s.Status.ReusedBytes)
		require.Contains(t, reasons(s), imagesnapshot.ReasonLayersReused)
		last := w.builder.builds[len(w.builder.builds)-1]
		require.True(t, last.Reuse)
		w.requireContent(s)

		// An update starts from what is there.
		w.builder.mu.Lock()
		w.builder.layers[refAB] = []string{"base", "a", "b2"}
		w.builder.mu.Unlock()
		_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "second", Spec: s.Spec, Rebuild: true})
		require.NoError(t, err)
		w.settle(time.Second)
		s = w.await("second", imagesnapshot.PhaseAvailable)
		require.Contains(t, []string{"first", "second"}, s.Status.BaseName)

		w.create("plain", spec(refAB))
		require.Empty(t, w.await("plain", imagesnapshot.PhaseAvailable).Status.BaseName, "nobody asked for it")
		require.False(t, w.builder.builds[len(w.builder.builds)-1].Reuse)
	})
}

func TestReuseOfDamagedBase(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("first", spec(refA))
		w.await("first", imagesnapshot.PhaseAvailable)
		w.builder.errs = []error{errdefs.ErrDataLoss}
		sp := spec(refAB)
		sp.ReuseLayers = true
		w.create("second", sp)
		s := w.await("second", imagesnapshot.PhaseAvailable)
		require.Empty(t, s.Status.BaseName)
		require.Zero(t, s.Status.ReusedBytes)
		w.requireStorage(w.get("first"), s)
	})
}
