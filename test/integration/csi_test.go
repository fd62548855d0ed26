//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/process"
)

// startCSI runs a CSI driver whose volumes are files, and returns its process, its socket and its storage.
func (n *node) startCSI() (driver *process.Process, socket, storage string) {
	n.Helper()
	socket, storage = filepath.Join(n.dir, "csi.sock"), filepath.Join(n.dir, "storage")
	driver, err := process.Start(n.Context(), process.Spec{
		Name: "csi-loop", Args: []string{filepath.Join(bin, "berth"), "csi-loop", "--directory", storage, "--socket", socket, "--node-id", "here"}, LogDir: n.dir,
	})
	require.NoError(n, err)
	n.eventually("the CSI driver to listen", func() error {
		_, err := os.Stat(socket)
		return err
	})
	return driver, socket, storage
}

// buildSnapshot builds a layer disk of the image on a volume and leaves a volume snapshot of it, as a builder on
// another node does.
func (n *node) buildSnapshot(builder *csi.Driver, p pushed) string {
	n.Helper()
	v, err := builder.CreateVolume(n.Context(), blockdev.CreateVolumeRequest{Name: "build", SizeBytes: 64 << 20})
	require.NoError(n, err)
	dev, err := builder.Attach(n.Context(), v.ID, blockdev.AttachOptions{})
	require.NoError(n, err)
	args := []string{"build", "-o", dev.Path, p.ref}
	if n.registry.PlainHTTP() {
		args = append(args, "--plain-http", n.registry.Host())
	}
	_, err = berth.Run(n.Context(), bin, n.env(), args...)
	require.NoError(n, err)
	n.registry.Reset()
	require.NoError(n, builder.Detach(n.Context(), v.ID))
	s, err := builder.CreateVolumeSnapshot(n.Context(), "app", v.ID)
	require.NoError(n, err)
	require.True(n, s.ReadyToUse)
	require.NoError(n, builder.DeleteVolume(n.Context(), v.ID))
	return s.ID
}

// M-2: an image comes to a node on a volume made of a volume snapshot, through a CSI driver: nothing is fetched,
// containers run on while the driver is dead, and when image and disk have gone nothing is left in the storage.
func TestCSIVolumeSnapshot(t *testing.T) {
	n := newNode(t)
	driver, socket, storage := n.startCSI()
	t.Cleanup(func() { require.NoError(t, driver.Stop(soon)) })
	builder, err := csi.Open(csi.Config{Node: socket, Directory: filepath.Join(n.dir, "builder")})
	require.NoError(t, err)
	defer func() { require.NoError(t, builder.Close()) }()
	p := n.push("all", n.busybox(), small("top"))
	snapshotID := n.buildSnapshot(builder, p)

	n.csi = map[string]string{"cloud": socket}
	n.disks = []berth.Disk{{Name: "d", Driver: "cloud", Snapshot: snapshotID, Keep: true}}
	n.start()
	n.pull(p)
	require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	n.runDetached(p, "running")

	require.NoError(t, driver.Signal(unix.SIGKILL))
	<-driver.Done()
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	require.NoError(t, os.Remove(socket))
	driver, _, _ = n.startCSI()

	_, err = n.berthd.CLI(t.Context(), "detach", "d")
	require.Error(t, err, "a container runs on it")
	require.NoError(t, n.containerd.RemoveContainer(t.Context(), "", "running"))
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	n.eventually("the disk to be detached", func() error {
		_, err := n.berthd.CLI(t.Context(), "detach", "d")
		return err
	})
	require.NoError(t, builder.DeleteVolumeSnapshot(t.Context(), snapshotID))
	for _, kind := range []string{"volumes", "snapshots", "attachments"} {
		left, err := os.ReadDir(filepath.Join(storage, kind))
		require.NoError(t, err)
		require.Empty(t, left, fmt.Sprintf("%s of the storage", kind))
	}
}
