package blockdevtest

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
)

func createVolume(r *run) {
	r.needProvisioner()
	req := blockdev.CreateVolumeRequest{Name: "suite-a", SizeBytes: r.SizeBytes}
	v, err := r.provisioner.CreateVolume(r.ctx, req)
	require.NoError(r, err)
	require.NotEmpty(r, v.ID)
	require.Equal(r, "suite-a", v.Name)
	require.GreaterOrEqual(r, v.SizeBytes, r.SizeBytes)
	require.Empty(r, v.SourceVolumeSnapshotID)
	r.write(v.ID, hello, 0)

	again, err := r.provisioner.CreateVolume(r.ctx, req)
	require.NoError(r, err)
	require.Equal(r, v, again)
	require.Equal(r, hello, r.read(v.ID, len(hello), 0), "creating again must not touch the content")
	got, err := r.provisioner.GetVolume(r.ctx, v.ID)
	require.NoError(r, err)
	require.Equal(r, v, got)
	r.deleteVolume(v.ID)
}

func createConcurrently(r *run) {
	r.needProvisioner()
	volumes := make([]blockdev.Volume, 8)
	var group sync.WaitGroup
	for i := range volumes {
		group.Go(func() {
			v, err := r.provisioner.CreateVolume(r.ctx, blockdev.CreateVolumeRequest{Name: "suite-a", SizeBytes: r.SizeBytes})
			if err != nil {
				r.Errorf("create volume: %v", err)
			}
			volumes[i] = v
		})
	}
	group.Wait()
	for _, v := range volumes {
		require.Equal(r, volumes[0], v)
	}
	r.deleteVolume(volumes[0].ID)
}

func createRefuses(r *run) {
	r.needProvisioner()
	id := r.volume("suite-a")
	for _, tc := range []struct {
		what string
		req  blockdev.CreateVolumeRequest
		is   func(error) bool
	}{
		{"the name with another size", blockdev.CreateVolumeRequest{Name: "suite-a", SizeBytes: 2 * r.SizeBytes}, errdefs.IsAlreadyExists},
		{"no name", blockdev.CreateVolumeRequest{SizeBytes: r.SizeBytes}, errdefs.IsInvalidArgument},
		{"no size", blockdev.CreateVolumeRequest{Name: "suite-b"}, errdefs.IsInvalidArgument},
		{"a size below zero", blockdev.CreateVolumeRequest{Name: "suite-b", SizeBytes: -1}, errdefs.IsInvalidArgument},
	} {
		_, err := r.provisioner.CreateVolume(r.ctx, tc.req)
		require.True(r, tc.is(err), "%s: %v", tc.what, err)
	}
	_, err := r.provisioner.GetVolume(r.ctx, "suite-none")
	require.True(r, errdefs.IsNotFound(err), "%v", err)
	r.deleteVolume(id)
}

func deleteVolume(r *run) {
	r.needProvisioner()
	id := r.volume("suite-a")
	r.attach(id, true)
	err := r.provisioner.DeleteVolume(r.ctx, id)
	require.True(r, errdefs.IsFailedPrecondition(err), "an attached volume: %v", err)
	r.detach(id)
	r.deleteVolume(id)
	r.deleteVolume(id)
	_, err = r.provisioner.GetVolume(r.ctx, id)
	require.True(r, errdefs.IsNotFound(err), "%v", err)
}

func reuseName(r *run) {
	r.needProvisioner()
	id := r.volume("suite-a")
	r.write(id, hello, 0)
	r.deleteVolume(id)
	v, err := r.provisioner.CreateVolume(r.ctx, blockdev.CreateVolumeRequest{Name: "suite-a", SizeBytes: 2 * r.SizeBytes})
	require.NoError(r, err, "a name is free when its volume is deleted")
	require.Equal(r, string(make([]byte, len(hello))), r.read(v.ID, len(hello), 0), "a new volume is blank")
	r.deleteVolume(v.ID)
}

func listVolumes(r *run) {
	r.needProvisioner()
	want := map[string]bool{}
	for i := range 5 {
		want[r.volume(fmt.Sprintf("suite-%d", i))] = true
	}
	list, err := r.provisioner.ListVolumes(r.ctx)
	require.NoError(r, err)
	got := map[string]bool{}
	for _, v := range list {
		same, err := r.provisioner.GetVolume(r.ctx, v.ID)
		require.NoError(r, err)
		require.Equal(r, same, v)
		got[v.ID] = true
	}
	require.Equal(r, want, got)
	for id := range want {
		r.deleteVolume(id)
	}
}

func snapshot(r *run) {
	r.needSnapshotter()
	source := r.volume("suite-a")
	r.write(source, hello, 4096)
	s, err := r.snapshotter.CreateVolumeSnapshot(r.ctx, "suite-s", source)
	require.NoError(r, err)
	s = r.waitReady(s)
	require.Equal(r, "suite-s", s.Name)
	require.Equal(r, source, s.SourceVolumeID)
	require.GreaterOrEqual(r, s.SizeBytes, r.SizeBytes)
	require.False(r, s.Created.IsZero())
	again, err := r.snapshotter.CreateVolumeSnapshot(r.ctx, "suite-s", source)
	require.NoError(r, err)
	require.Equal(r, s.ID, again.ID)

	for _, size := range []int64{0, 2 * s.SizeBytes} {
		req := blockdev.CreateVolumeRequest{Name: "suite-b", SizeBytes: size, SourceVolumeSnapshotID: s.ID}
		v, err := r.provisioner.CreateVolume(r.ctx, req)
		require.NoError(r, err)
		require.Equal(r, s.ID, v.SourceVolumeSnapshotID)
		require.GreaterOrEqual(r, v.SizeBytes, max(size, s.SizeBytes))
		require.Equal(r, hello, r.read(v.ID, len(hello), 4096))
		require.Equal(r, string(make([]byte, 512)), r.read(v.ID, 512, v.SizeBytes-512))
		same, err := r.provisioner.CreateVolume(r.ctx, req)
		require.NoError(r, err)
		require.Equal(r, v, same)
		_, err = r.provisioner.CreateVolume(r.ctx, blockdev.CreateVolumeRequest{Name: "suite-b", SizeBytes: v.SizeBytes})
		require.True(r, errdefs.IsAlreadyExists(err), "the name with another source: %v", err)
		r.deleteVolume(v.ID)
	}
	require.NoError(r, r.snapshotter.DeleteVolumeSnapshot(r.ctx, s.ID))
	require.NoError(r, r.snapshotter.DeleteVolumeSnapshot(r.ctx, s.ID))
	_, err = r.snapshotter.GetVolumeSnapshot(r.ctx, s.ID)
	require.True(r, errdefs.IsNotFound(err), "%v", err)
	r.deleteVolume(source)
}

func (r *run) snapshotOf(name, volumeID string) blockdev.VolumeSnapshot {
	r.Helper()
	s, err := r.snapshotter.CreateVolumeSnapshot(r.ctx, name, volumeID)
	require.NoError(r, err)
	return r.waitReady(s)
}

func (r *run) volumeFrom(name, snapshotID string) string {
	r.Helper()
	v, err := r.provisioner.CreateVolume(r.ctx, blockdev.CreateVolumeRequest{Name: name, SourceVolumeSnapshotID: snapshotID})
	require.NoError(r, err)
	return v.ID
}

// snapshotIsFrozen writes to the volumes before and behind a snapshot.
func snapshotIsFrozen(r *run) {
	r.needSnapshotter()
	source := r.volume("suite-a")
	r.write(source, hello, 0)
	s := r.snapshotOf("suite-s", source)
	r.write(source, "changed at the source", 0)
	first := r.volumeFrom("suite-b", s.ID)
	require.Equal(r, hello, r.read(first, len(hello), 0))
	r.write(first, "changed in the volume", 0)
	second := r.volumeFrom("suite-c", s.ID)
	require.Equal(r, hello, r.read(second, len(hello), 0))
	require.NoError(r, r.snapshotter.DeleteVolumeSnapshot(r.ctx, s.ID))
	for _, id := range []string{source, first, second} {
		r.deleteVolume(id)
	}
}

// snapshotStandsAlone deletes what a snapshot came from, and the snapshot that a volume came from.
func snapshotStandsAlone(r *run) {
	r.needSnapshotter()
	source := r.volume("suite-a")
	r.write(source, hello, 0)
	s := r.snapshotOf("suite-s", source)
	r.deleteVolume(source)
	v := r.volumeFrom("suite-b", s.ID)
	require.NoError(r, r.snapshotter.DeleteVolumeSnapshot(r.ctx, s.ID))
	require.Equal(r, hello, r.read(v, len(hello), 0))
	r.deleteVolume(v)
}

func snapshotRefuses(r *run) {
	r.needSnapshotter()
	one, two := r.volume("suite-a"), r.volume("suite-b")
	s := r.snapshotOf("suite-s", one)
	_, err := r.snapshotter.CreateVolumeSnapshot(r.ctx, "suite-s", two)
	require.True(r, errdefs.IsAlreadyExists(err), "the name with another source: %v", err)
	_, err = r.snapshotter.CreateVolumeSnapshot(r.ctx, "suite-t", "suite-none")
	require.True(r, errdefs.IsNotFound(err), "no such volume: %v", err)
	_, err = r.snapshotter.CreateVolumeSnapshot(r.ctx, "", one)
	require.True(r, errdefs.IsInvalidArgument(err), "no name: %v", err)
	_, err = r.provisioner.CreateVolume(r.ctx, blockdev.CreateVolumeRequest{Name: "suite-c", SourceVolumeSnapshotID: "suite-none"})
	require.True(r, errdefs.IsNotFound(err), "no such snapshot: %v", err)
	_, err = r.provisioner.CreateVolume(r.ctx, blockdev.CreateVolumeRequest{Name: "suite-c", SourceVolumeSnapshotID: s.ID, SizeBytes: s.SizeBytes / 2})
	require.True(r, errdefs.IsInvalidArgument(err), "less than the snapshot: %v", err)
	require.NoError(r, r.snapshotter.DeleteVolumeSnapshot(r.ctx, s.ID))
	r.deleteVolume(one)
	r.deleteVolume(two)
}

func listSnapshots(r *run) {
	r.needSnapshotter()
	source := r.volume("suite-a")
	want := map[string]bool{}
	for i := range 3 {
		want[r.snapshotOf(fmt.Sprintf("suite-%d", i), source).ID] = true
	}
	list, err := r.snapshotter.ListVolumeSnapshots(r.ctx)
	require.NoError(r, err)
	got := map[string]bool{}
	for _, s := range list {
		same, err := r.snapshotter.GetVolumeSnapshot(r.ctx, s.ID)
		require.NoError(r, err)
		require.Equal(r, same, s)
		got[s.ID] = true
	}
	require.Equal(r, want, got)
	for id := range want {
		require.NoError(r, r.snapshotter.DeleteVolumeSnapshot(r.ctx, id))
	}
	r.deleteVolume(source)
}
