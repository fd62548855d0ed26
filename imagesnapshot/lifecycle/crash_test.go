package lifecycle_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// life is a whole life: creation, an update, deletion, with a second image snapshot that shares layers. Every call to
// the engine may find the process dead; it is repeated with the next one.
func life(w *world, flash bool) {
	sp := spec(refA)
	sp.Flash, sp.ReuseLayers = flash, true
	w.ask(func() error {
		_, err := w.engine.Create(w.Context(), lifecycle.CreateRequest{Name: "one", ClientToken: "t", Spec: sp})
		return err
	})
	s := w.survive("one", imagesnapshot.PhaseAvailable)
	w.requireStorage(s)
	w.requireContent(s)

	update := sp.Clone()
	update.Images = []string{refAB}
	w.ask(func() error {
		have, err := w.engine.Find(w.Context(), "one")
		if err != nil || have.Spec.Images[0] == refAB {
			return err // the answer of the first try was lost
		}
		_, err = w.engine.Update(w.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: update})
		return err
	})
	s = w.survive("one", imagesnapshot.PhaseAvailable)
	require.Equal(w, refAB, s.Status.Images[0].Reference)
	w.requireStorage(s)
	w.requireContent(s)

	w.ask(func() error {
		_, err := w.engine.Delete(w.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
	w.surviveUntil(func() bool {
		_, err := w.store.Get(w.Context(), "one")
		return errdefs.IsNotFound(err)
	}, "gone")
	// What was in the air when the process died is for the sweep.
	w.settle(15 * time.Minute)
	w.revive()
	w.settle(15 * time.Minute)
	w.requireStorage()
}

// ask repeats a call with the next process if this one dies.
func (w *world) ask(call func() error) {
	w.Helper()
	for range 3 {
		err := call()
		if !w.revive() {
			require.NoError(w, err)
			return
		}
	}
	require.FailNow(w, "died again")
}

// revive starts another process if this one is dead.
func (w *world) revive() bool {
	select {
	case <-w.gate.died:
	default:
		return false
	}
	w.restart()
	return true
}

func (w *world) survive(name string, phase imagesnapshot.Phase) (s *imagesnapshot.ImageSnapshot) {
	w.Helper()
	w.surviveUntil(func() bool {
		var err error
		s, err = w.store.Get(w.Context(), name)
		return err == nil && s.Status.Phase == phase && s.Status.Work == nil
	}, string(phase))
	return s
}

func (w *world) surviveUntil(condition func() bool, what string) {
	w.Helper()
	for range 3600 {
		synctest.Wait()
		if w.revive() {
			continue
		}
		if condition() {
			return
		}
		time.Sleep(time.Second)
	}
	list, _ := w.store.Get(w.Context(), "one")
	require.FailNow(w, "never "+what, "%+v", list)
}

// TestCrashAnywhere kills the process at each of its calls to the store, the storage and the builder, before the call
// and after it, and wants the next process to end the life well: nothing lost, nothing left over.
func TestCrashAnywhere(t *testing.T) {
	for _, mode := range []struct {
		name                string
		flash, flashStorage bool
	}{{"plain", false, false}, {"flash by the volume", true, false}, {"flash by the storage", true, true}} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			setup := func(w *world) { w.ready, w.flash = 5*time.Second, mode.flashStorage }
			calls := 0
			newWorld(t, func(w *world) {
				life(w, mode.flash)
				calls = w.gate.calls()
			}, setup)
			require.Greater(t, calls, 40)
			for at := 1; at <= calls; at++ {
				for _, after := range []bool{false, true} {
					ok := t.Run(fmt.Sprintf("call %d after=%t", at, after), func(t *testing.T) {
						newWorld(t, func(w *world) {
							w.stop()
							w.start(at, after)
							life(w, mode.flash)
						}, setup)
					})
					if !ok {
						return
					}
				}
			}
		})
	}
}

// TestFlash is E-23: with a storage that takes an hour to complete a snapshot, usable after the build, not an hour
// later.
func TestFlash(t *testing.T) {
	const slow = time.Hour
	timeToReady := func(t *testing.T, flash, storage bool) (took time.Duration) {
		newWorld(t, func(w *world) {
			sp := spec(refA)
			sp.Flash, sp.Copies.Flash = flash, 2
			begin := time.Now()
			w.create("one", sp)
			for w.get("one").Status.Phase != imagesnapshot.PhaseAvailable {
				w.settle(time.Second)
			}
			took = time.Since(begin)
			s := w.get("one")
			require.True(t, s.Usable(time.Now(), false))
			if flash {
				require.Less(t, s.Status.Progress, 100, "of the regular snapshot")
				require.Equal(t, storage, s.Status.VolumeID == "")
				require.Equal(t, storage, len(s.Status.VolumeSnapshots) == 2)
				require.Contains(t, reasons(s), imagesnapshot.ReasonFlashReady)
			}
			ready := s.Status.Ready
			s = w.await("one", imagesnapshot.PhaseAvailable)
			require.Equal(t, ready, s.Status.Ready)
			require.Empty(t, s.Status.VolumeID)
			require.Len(t, s.Status.VolumeSnapshots, 1)
			require.Equal(t, imagesnapshot.VolumeSnapshotStandard, s.Status.VolumeSnapshots[0].Kind)
			require.Equal(t, 100, s.Status.Progress)
			w.requireStorage(s)
			w.requireContent(s)
		}, func(w *world) { w.ready, w.flash = slow, storage })
		return took
	}
	regular := timeToReady(t, false, false)
	for _, storage := range []bool{false, true} {
		flash := timeToReady(t, true, storage)
		t.Logf("usable after %s instead of %s (storage has flash snapshots: %t)", flash, regular, storage)
		require.GreaterOrEqual(t, regular-flash, slow)
	}
}

// TestFlashWithoutRegular: the regular snapshot comes to nothing. A new image snapshot is unavailable then, an updated
// one has its old content again.
func TestFlashWithoutRegular(t *testing.T) {
	newWorld(t, func(w *world) {
		plain := spec(refA)
		w.create("one", plain)
		old := w.await("one", imagesnapshot.PhaseAvailable)
		w.ready = 100 * time.Hour
		w.restart()
		plain.Images, plain.Flash, plain.Build.TimeoutMinutes = []string{refC}, true, 60
		_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: plain})
		require.NoError(t, err)
		w.create("two", plain)
		w.settle(10 * time.Minute)
		for _, name := range []string{"one", "two"} {
			s := w.get(name)
			require.Equal(t, imagesnapshot.PhaseAvailable, s.Status.Phase)
			require.Equal(t, refC, s.Status.Images[0].Reference)
			_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: name, Spec: spec(refA)})
			require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		}
		one := w.await("one", imagesnapshot.PhaseUpdateFailed)
		require.Equal(t, old.Status.Content, one.Status.Content)
		two := w.await("two", imagesnapshot.PhaseUnavailable)
		require.Equal(t, imagesnapshot.ReasonBuildTimeout, two.Status.Reason)
		require.False(t, two.Usable(time.Now(), true))
		w.requireStorage(one)
	})
}
