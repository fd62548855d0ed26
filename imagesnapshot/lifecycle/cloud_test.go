package lifecycle_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// An image snapshot is made, changed and deleted on a cloud that does one thing wrong, and never has to be made again.
func TestEachFaultOfACloud(t *testing.T) {
	for _, fault := range blockdevtest.FaultNames() {
		switch fault {
		case "devices are cut off", "devices fail", "devices stall", "devices give read errors":
			continue // those are the builder's to report, and the next build's to survive
		}
		for name, flash := range map[string]bool{"": false, ", with flash": true} {
			t.Run(fault+name, func(t *testing.T) {
				t.Parallel()
				newWorld(t, func(w *world) {
					w.fake.Misbehave(blockdevtest.Faults(3, fault))
					sp := spec(refA)
					sp.Flash, sp.ReuseLayers = flash, true
					w.create("one", sp)
					w.await("one", imagesnapshot.PhaseAvailable)
					w.fake.Misbehave(blockdevtest.Faults(4, fault))
					sp.Images = []string{refAB}
					_, err := w.engine.Update(w.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: sp})
					require.NoError(w, err)
					s := w.await("one", imagesnapshot.PhaseAvailable)
					require.Equal(w, refAB, s.Status.Images[0].Reference)
					require.NotContains(w, reasons(s), imagesnapshot.ReasonVolumeSnapshotLost)
					_, err = w.engine.Delete(w.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
					require.NoError(w, err)
					w.settle(3 * time.Hour) // detachments that stick, and a sweep
					_, err = w.store.Get(w.Context(), "one")
					require.True(w, errdefs.IsNotFound(err), "%v", err)
					require.Equal(w, blockdevtest.Inventory{}, w.fake.Inventory())
				})
			})
		}
	}
}

// A volume snapshot that the storage does not list yet is not lost. One that is gone is, a little later.
func TestSweepBelievesNoYoungLoss(t *testing.T) {
	newWorld(t, func(w *world) {
		w.fake.Misbehave(blockdevtest.Misbehaviour{VisibleAfter: blockdevtest.Between{Least: 4 * time.Minute, Most: 4 * time.Minute}})
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseAvailable)
		report, err := w.engine.Sweep(w.Context(), true)
		require.NoError(w, err)
		require.Empty(w, report.Lost)
		w.fake.Discard(s.Status.VolumeSnapshotID)
		w.settle(25 * time.Minute)
		s = w.get("one")
		require.Equal(w, imagesnapshot.PhaseUnavailable, s.Status.Phase)
		require.Equal(w, imagesnapshot.ReasonVolumeSnapshotLost, s.Status.Reason)
	})
}

// A volume that is really gone ends the work some time later, with that reason.
func TestVolumeIsGone(t *testing.T) {
	newWorld(t, func(w *world) {
		w.fake.Plan(blockdevtest.Fault{Op: "Attach", Err: blockdev.ErrNotFound})
		start := time.Now()
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseFailed)
		require.Equal(w, imagesnapshot.ReasonStorageFailed, s.Status.Reason)
		require.Contains(w, s.Status.Message, "does not exist")
		require.Greater(w, time.Since(start), 5*time.Minute, "it may be seen late")
		w.requireStorage()
	})
}

// Two volumes look the same to the node, because their serials are cut off: no build writes to the other's device.
func TestBuildsOfVolumesThatLookTheSame(t *testing.T) {
	newWorld(t, func(w *world) {
		w.fake.Misbehave(blockdevtest.Misbehaviour{CutSerials: 1})
		w.create("one", spec(refA))
		w.create("two", spec(refC))
		w.create("three", spec(refAB))
		var made []*imagesnapshot.ImageSnapshot
		for _, name := range []string{"one", "two", "three"} {
			made = append(made, w.await(name, imagesnapshot.PhaseAvailable))
		}
		w.fake.Misbehave(blockdevtest.Misbehaviour{})
		for _, s := range made {
			w.requireContent(s)
		}
		w.requireStorage(made...)
	}, func(w *world) { w.cfg.MaxBuilds = 3 })
}
