package csi_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/node/stage"
)

// buildSnapshot writes a layer disk with the layers base and app onto a volume and takes a volume snapshot of it, as a
// builder does.
func buildSnapshot(t *testing.T, d *csi.Driver) (snapshotID string, id layerdisk.Identity) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	_, id = layerdisktest.Disk(t, file, layerdisk.FileSystemEROFS, func(layer, dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "name"), []byte(layer), 0o644))
	}, layerdisktest.Image{Reference: "example.org/app:1", Layers: []string{"base", "app"}})
	info, err := os.Stat(file)
	require.NoError(t, err)

	v, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "berth-build-1", SizeBytes: info.Size()})
	require.NoError(t, err)
	dev, err := d.Attach(t.Context(), v.ID, blockdev.AttachOptions{})
	require.NoError(t, err)
	copyFile(t, file, dev.Path)
	require.NoError(t, d.Detach(t.Context(), v.ID))
	s, err := d.CreateVolumeSnapshot(t.Context(), "berth-snapshot-1", v.ID)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		s, err = d.GetVolumeSnapshot(t.Context(), s.ID)
		require.NoError(t, err)
		return s.ReadyToUse
	}, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, d.DeleteVolume(t.Context(), v.ID))
	return s.ID, id
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	require.NoError(t, err)
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = io.Copy(dst, src)
	require.NoError(t, err)
	require.NoError(t, dst.Sync())
	require.NoError(t, dst.Close())
}

func openStage(t *testing.T, root string, d blockdev.Attacher) *stage.Stager {
	t.Helper()
	require.NoError(t, os.MkdirAll(root, 0o700))
	s, err := stage.Open(stage.Config{Root: root, Drivers: map[string]blockdev.Attacher{"cloud": d}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Restore(t.Context()))
	return s
}

// TestSnapshotToNode takes a layer disk from a builder to another node through a volume snapshot, and away again.
func TestSnapshotToNode(t *testing.T) {
	for name, without := range map[string][]loopcsi.Feature{
		"everything":              nil,
		"node only":               {loopcsi.Publish, loopcsi.Stage, loopcsi.Get},
		"read-only ignored":       {loopcsi.ReadOnly},
		"no questions, no answer": {loopcsi.List, loopcsi.Get},
	} {
		t.Run(name, func(t *testing.T) { snapshotToNode(t, loopcsi.Options{Without: without}) })
	}
}

func snapshotToNode(t *testing.T, options loopcsi.Options) {
	t.Helper()
	p := newPlant(t, options)
	builder, user := p.open("builder"), p.open("node")
	snapshotID, id := buildSnapshot(t, builder)

	root := filepath.Join(p.dir, "root")
	s := openStage(t, root, user)
	_, err := s.Reconcile(t.Context(), nil)
	require.NoError(t, err)
	spec := stage.Spec{Name: "app", Driver: "cloud", VolumeSnapshotID: snapshotID, Expect: id}
	status, err := s.Stage(t.Context(), spec)
	require.NoError(t, err)
	require.NotEmpty(t, status.VolumeID)
	readonly, err := device.ReadOnly(status.Device)
	require.NoError(t, err)
	require.True(t, readonly, "whatever the driver does about it")

	held, err := s.Layers.Acquire(t.Context(), "container", layerdisk.LayerName{ChainID: layerdisktest.ChainID("base", "app")})
	require.NoError(t, err)
	content, err := os.ReadFile(filepath.Join(held.Dir, "name"))
	require.NoError(t, err)
	require.Equal(t, "app", string(content))

	// The CSI driver is not in the read path, and comes back where it was.
	p.stop(unix.SIGKILL)
	_, err = s.Layers.Acquire(t.Context(), "another", layerdisk.LayerName{ChainID: layerdisktest.ChainID("base")})
	require.NoError(t, err)
	p.start()
	again, err := s.Stage(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, status.Device, again.Device)

	_, err = s.Unstage(t.Context(), "app", stage.UnstageOptions{})
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.True(t, errdefs.IsFailedPrecondition(user.Detach(t.Context(), status.VolumeID)), "it is mounted")
	require.NoError(t, s.Layers.Release(t.Context(), "container"))
	require.NoError(t, s.Layers.Release(t.Context(), "another"))
	_, err = s.Unstage(t.Context(), "app", stage.UnstageOptions{})
	require.NoError(t, err)
	require.NoError(t, builder.DeleteVolumeSnapshot(t.Context(), snapshotID))
	p.expectNothing("builder", "node")
}

// TestRestoreAfterReboot unmounts and detaches behind everybody's back, as a reboot does, with a new process on both
// sides.
func TestRestoreAfterReboot(t *testing.T) {
	p := newPlant(t, loopcsi.Options{})
	builder := p.open("builder")
	snapshotID, id := buildSnapshot(t, builder)
	root := filepath.Join(p.dir, "root")
	require.NoError(t, os.MkdirAll(root, 0o700))

	first := p.open("node")
	s, err := stage.Open(stage.Config{Root: root, Drivers: map[string]blockdev.Attacher{"cloud": first}})
	require.NoError(t, err)
	require.NoError(t, s.Restore(t.Context()))
	_, err = s.Stage(t.Context(), stage.Spec{Name: "app", Driver: "cloud", VolumeSnapshotID: snapshotID, Expect: id, Keep: true})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, first.Close())

	for mounts := p.mounts(); len(mounts) > 0; mounts = p.mounts() {
		require.NoError(t, unix.Unmount(mounts[len(mounts)-1], 0))
	}
	disks, err := filepath.Glob(filepath.Join(p.spec.Directory, "volumes", "*", "disk"))
	require.NoError(t, err)
	require.NotEmpty(t, disks)
	for _, disk := range disks {
		loops, err := device.FindLoops(disk)
		require.NoError(t, err)
		for _, l := range loops {
			require.NoError(t, device.DetachLoop(t.Context(), l))
		}
	}

	second := p.open("node")
	attached, err := second.Attached(t.Context())
	require.NoError(t, err)
	require.Empty(t, attached, "nothing survives a reboot")
	s = openStage(t, root, second)
	_, err = s.Reconcile(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, s.Disks(), 1)
	require.True(t, s.Disks()[0].Serving, "%v", s.Disks()[0].LastError)
	_, err = s.Unstage(t.Context(), "app", stage.UnstageOptions{})
	require.NoError(t, err)
	require.NoError(t, builder.DeleteVolumeSnapshot(t.Context(), snapshotID))
	p.expectNothing("builder", "node")
}

// expectNothing makes sure that no volume, snapshot, attachment, mount or file of nodes is left.
func (p *plant) expectNothing(nodes ...string) {
	p.t.Helper()
	require.Empty(p.t, p.mounts())
	require.Empty(p.t, leftovers(p.t, p.spec.Directory))
	for _, node := range nodes {
		require.Empty(p.t, leftovers(p.t, filepath.Join(p.dir, node)))
	}
}
