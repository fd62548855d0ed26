package lifecycle_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// TestRetention is A-7, C-37, C-48 and Q11: expired is unavailable first, then deleted.
func TestRetention(t *testing.T) {
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.RetentionDays = 7
		w.create("one", sp)
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.Equal(t, s.Status.Ready.Add(7*24*time.Hour), s.Status.Expires)
		w.restart()
		w.settle(time.Until(s.Status.Expires) - time.Second)
		require.True(t, w.get("one").Usable(time.Now(), false))
		w.settle(time.Second)
		expired := w.get("one")
		require.Equal(t, imagesnapshot.PhaseUnavailable, expired.Status.Phase)
		require.Equal(t, imagesnapshot.ReasonExpired, expired.Status.Reason)
		w.requireStorage(s) // still there for those who attach it now
		w.settle(9 * time.Minute)
		w.get("one")
		w.settle(2 * time.Minute)
		w.awaitGone("one")
		w.requireStorage()
	})
}

// TestFailedIsKeptOneDay with its reason, and frees the volume at once.
func TestFailedIsKeptOneDay(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec("nothing:1"))
		s := w.await("one", imagesnapshot.PhaseFailed)
		require.Equal(t, imagesnapshot.ReasonImageUnavailable, s.Status.Reason)
		require.Contains(t, s.Status.Message, "nothing")
		w.requireStorage()
		w.settle(23 * time.Hour)
		require.Equal(t, imagesnapshot.PhaseFailed, w.get("one").Status.Phase)
		w.settle(time.Hour)
		w.awaitGone("one")
	})
}

// TestUnusedAutomatic is E-30 as Q8 reads it.
func TestUnusedAutomatic(t *testing.T) {
	newWorld(t, func(w *world) {
		ensure := func(ref string) *imagesnapshot.ImageSnapshot {
			r, err := w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Images: []string{ref}})
			require.NoError(t, err)
			return w.await(r.Object.Name, imagesnapshot.PhaseAvailable)
		}
		unused := ensure(refA)
		used := ensure(refC)
		manual := w.create("manual", spec(refAB))
		w.settle(2 * 24 * time.Hour)
		w.engine.RecordMatch(used.Name, used.ID)
		w.settle(24*time.Hour - 10*time.Minute)
		require.True(t, w.get(unused.Name).Usable(time.Now(), false))
		w.settle(30 * time.Minute)
		w.awaitGone(unused.Name)
		used = w.get(used.Name)
		require.Equal(t, imagesnapshot.PhaseAvailable, used.Status.Phase, "used within three days")
		require.EqualValues(t, 1, used.Status.MatchCount)
		w.settle(24 * time.Hour)
		w.get(used.Name)
		w.settle(24 * time.Hour)
		w.awaitGone(used.Name)
		w.settle(30 * 24 * time.Hour)
		require.Equal(t, imagesnapshot.PhaseAvailable, w.get(manual.Name).Status.Phase)
	})
}

func TestMatchesSurviveRestart(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseAvailable)
		for range 5 {
			w.engine.RecordMatch("one", s.ID)
		}
		w.engine.RecordMatch("one", "another object")
		w.engine.RecordMatch("none", "none")
		w.engine.RecordMatch("one", s.ID)
		now := time.Now().UTC()
		w.restart()
		got := w.get("one")
		require.EqualValues(t, 1, got.Status.MatchCount, "those of another object in between are another count")
		require.Equal(t, now, got.Status.LastMatched)
	})
}
