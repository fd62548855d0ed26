package lifecycle_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
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

const (
	refWide   = "docker.io/library/wide:1"
	refOther  = "docker.io/library/other:1"
	refNarrow = "docker.io/library/narrow:1"
)

// wideWorld has disks of which little is needed for refNarrow.
func wideWorld(w *world) {
	w.builder.layers[refWide] = []string{"base", "s1", "s2", "s3", "s4"}
	w.builder.layers[refOther] = []string{"o1", "o2", "o3"}
	w.builder.layers[refNarrow] = []string{"base", "s1", "o1", "n1"}
}

func reusing(images ...string) imagesnapshot.Spec {
	sp := spec(images...)
	sp.ReuseLayers = true
	return sp
}

// TestReuseFromSeveral is E-22: layers are copied from disks that are not worth being started from, and an event says
// how much came from where. Their volumes are gone when the build is.
func TestReuseFromSeveral(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("wide", spec(refWide))
		w.create("other", spec(refOther))
		w.create("useless", spec(refC))
		wide, other := w.await("wide", imagesnapshot.PhaseAvailable), w.await("other", imagesnapshot.PhaseAvailable)
		useless := w.await("useless", imagesnapshot.PhaseAvailable)
		_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "stranger", Owner: "another", Spec: reusing(refNarrow)})
		require.NoError(t, err)
		stranger := w.await("stranger", imagesnapshot.PhaseAvailable)
		require.Zero(t, stranger.Status.ReusedBytes, "another tenant's disks are never copied from")
		require.Len(t, messages(stranger, imagesnapshot.ReasonLayersNotReused), 1)
		w.delete("stranger")
		w.awaitGone("stranger")
		w.create("narrow", reusing(refNarrow))
		s := w.await("narrow", imagesnapshot.PhaseAvailable)
		last := w.builder.builds[len(w.builder.builds)-1]
		require.False(t, last.Reuse, "less than half of any disk is needed")
		require.Len(t, last.Donors, 2)
		require.Equal(t, "wide", last.Donors[0].Name)
		require.Equal(t, "other", last.Donors[1].Name)
		require.EqualValues(t, 201, s.Status.ReusedBytes)
		require.Equal(t, "wide", s.Status.BaseName)
		require.Contains(t, messages(s, imagesnapshot.ReasonLayersReused),
			"100 bytes of layers copied from wide, 101 bytes of layers copied from other, 1000 bytes fetched")
		w.requireStorage(wide, other, useless, s)
		w.requireContent(s)

		w.create("nothing", reusing(refA))
		require.NotContains(t, reasons(w.await("nothing", imagesnapshot.PhaseAvailable)), imagesnapshot.ReasonLayersNotReused)
		w.builder.mu.Lock()
		w.builder.layers[refC] = []string{"brand", "new"}
		w.builder.mu.Unlock()
		w.create("new", reusing(refC))
		s = w.await("new", imagesnapshot.PhaseAvailable)
		require.Len(t, messages(s, imagesnapshot.ReasonLayersNotReused), 1, "and why nothing was")
		require.Zero(t, s.Status.ReusedBytes)
	}, wideWorld)
}

func messages(s *imagesnapshot.ImageSnapshot, reason imagesnapshot.Reason) []string {
	var list []string
	for _, e := range s.Status.Events {
		if e.Reason == reason {
			list = append(list, e.Message)
		}
	}
	return list
}

// A donor that the storage makes no volume of is done without, one that turns out to be damaged as well.
func TestReuseWithoutADonor(t *testing.T) {
	a := &asked{}
	newWorld(t, func(w *world) {
		w.create("wide", spec(refWide))
		w.create("other", spec(refOther))
		wide, other := w.await("wide", imagesnapshot.PhaseAvailable), w.await("other", imagesnapshot.PhaseAvailable)
		a.change = func(req *blockdev.CreateVolumeRequest) error {
			if req.SourceVolumeSnapshotID == wide.Status.VolumeSnapshotID {
				return blockdev.ErrNotFound
			}
			return nil
		}
		w.create("narrow", reusing(refNarrow))
		s := w.await("narrow", imagesnapshot.PhaseAvailable)
		require.Equal(t, "other", s.Status.BaseName)
		require.Len(t, w.builder.builds[len(w.builder.builds)-1].Donors, 1)
		w.requireStorage(wide, other, s)

		a.change = nil
		w.delete("narrow")
		w.awaitGone("narrow")
		w.builder.errs = []error{errdefs.ErrDataLoss}
		w.create("narrow", reusing(refNarrow))
		s = w.await("narrow", imagesnapshot.PhaseAvailable)
		require.Empty(t, s.Status.BaseName)
		require.Empty(t, w.builder.builds[len(w.builder.builds)-1].Donors)
		w.requireStorage(wide, other, s)

		// Deleted in the middle of the build, with the donors attached.
		w.delete("narrow")
		w.awaitGone("narrow")
		w.create("narrow", reusing(refNarrow))
		w.settle(10 * time.Second)
		require.Len(t, w.get("narrow").Status.Work.Donors, 2)
		w.delete("narrow")
		w.awaitGone("narrow")
		w.requireStorage(wide, other)
	}, wideWorld, between(a))
}

// TestReuseSurvivesCrashes is E-22: the process is killed at each of its calls while layers are copied from two
// disks.
func TestReuseSurvivesCrashes(t *testing.T) {
	run := func(t *testing.T, at int, after bool) (calls int) {
		newWorld(t, func(w *world) {
			w.create("wide", spec(refWide))
			w.create("other", spec(refOther))
			wide, other := w.await("wide", imagesnapshot.PhaseAvailable), w.await("other", imagesnapshot.PhaseAvailable)
			w.stop()
			w.start(at, after)
			w.ask(func() error {
				_, err := w.engine.Create(w.Context(), lifecycle.CreateRequest{Name: "one", ClientToken: "t", Spec: reusing(refNarrow)})
				return err
			})
			s := w.survive("one", imagesnapshot.PhaseAvailable)
			calls = w.gate.calls()
			w.settle(15 * time.Minute)
			w.revive()
			w.settle(15 * time.Minute)
			s = w.get(s.Name)
			w.requireStorage(wide, other, s)
			w.requireContent(s)
			attached, err := w.fake.Attached(w.Context())
			require.NoError(w, err)
			require.Empty(w, attached)
			require.Len(w, w.builder.builds[len(w.builder.builds)-1].Donors, 2)
		}, wideWorld)
		return calls
	}
	calls := run(t, 0, false)
	require.Greater(t, calls, 20)
	for at := 1; at <= calls; at++ {
		for _, after := range []bool{false, true} {
			run(t, at, after)
		}
	}
}
