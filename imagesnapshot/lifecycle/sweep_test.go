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

func TestSweep(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseAvailable)
		prefix := s.Status.VolumeSnapshotName[:len("berth-000000000000-")]
		id := "0123456789abcdef0123456789abcdef"
		ours, err := w.fake.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: prefix + "v-" + id + "-1", SizeBytes: 4096})
		require.NoError(t, err)
		foreign := []string{"mine", prefix + "node", "berth-disk-" + id, prefix + "v-" + id, prefix + "v-" + id + "-x", "berth-ffffffffffff-v-" + id + "-1"}
		for _, name := range foreign {
			_, err := w.fake.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: 4096})
			require.NoError(t, err)
		}
		orphan, err := w.fake.CreateVolumeSnapshot(t.Context(), prefix+"s-"+id+"-1-0", ours.ID)
		require.NoError(t, err)
		report, err := w.engine.Sweep(t.Context(), false)
		require.NoError(t, err)
		require.Len(t, report.Orphans, 2)
		require.Empty(t, report.Deleted)
		_, err = w.fake.GetVolumeSnapshot(t.Context(), orphan.ID)
		require.NoError(t, err, "reported, not deleted")

		w.settle(15 * time.Minute) // the engine sweeps by itself
		_, err = w.fake.GetVolumeSnapshot(t.Context(), orphan.ID)
		require.True(t, errdefs.IsNotFound(err))
		volumes, err := w.fake.ListVolumes(t.Context())
		require.NoError(t, err)
		var left []string
		for _, v := range volumes {
			left = append(left, v.Name)
		}
		require.ElementsMatch(t, foreign, left)
		require.Equal(t, s, w.get("one"))
	})
}

// TestSnapshotLost: an image snapshot whose volume snapshot was deleted by somebody is not offered any more.
func TestSnapshotLost(t *testing.T) {
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.Copies.Standard = 2
		w.create("one", sp)
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.NoError(t, w.fake.DeleteVolumeSnapshot(t.Context(), s.Status.VolumeSnapshots[0].ID))
		w.settle(15 * time.Minute)
		one := w.get("one")
		require.Equal(t, imagesnapshot.PhaseAvailable, one.Status.Phase)
		require.Equal(t, s.Status.VolumeSnapshots[1].ID, one.Status.VolumeSnapshotID)
		require.NoError(t, w.fake.DeleteVolumeSnapshot(t.Context(), s.Status.VolumeSnapshots[1].ID))
		w.settle(15 * time.Minute)
		one = w.get("one")
		require.Equal(t, imagesnapshot.PhaseUnavailable, one.Status.Phase)
		require.Equal(t, imagesnapshot.ReasonVolumeSnapshotLost, one.Status.Reason)
		_, err := w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
		require.NoError(t, err)
		w.awaitGone("one")
	})
}
