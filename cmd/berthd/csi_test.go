package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// serveCSI serves the loop driver as a CSI driver until stop is called.
func serveCSI(t *testing.T, driver *loopdev.Driver, socket string) (stop func()) {
	t.Helper()
	server, err := loopcsi.New(driver, loopcsi.Options{NodeID: "node-1"})
	require.NoError(t, err)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// builtSnapshot leaves a volume snapshot of a layer disk in the storage, as a builder does.
func (p *process) builtSnapshot(driver *loopdev.Driver) (blockdev.VolumeSnapshot, layerdisk.Identity) {
	p.t.Helper()
	v, err := driver.CreateVolume(p.t.Context(), blockdev.CreateVolumeRequest{Name: "build", SizeBytes: 16 << 20})
	require.NoError(p.t, err)
	id := makeDisk(p.t, p.path("disk.img"))
	data, err := os.ReadFile(p.path("disk.img"))
	require.NoError(p.t, err)
	require.NoError(p.t, os.Remove(p.path("disk.img")))
	f, err := os.OpenFile(filepath.Join(p.path("storage"), "volumes", v.ID, "disk"), os.O_WRONLY, 0)
	require.NoError(p.t, err)
	_, err = f.Write(data)
	require.NoError(p.t, err)
	require.NoError(p.t, f.Close())
	snapshot, err := driver.CreateVolumeSnapshot(p.t.Context(), "app", v.ID)
	require.NoError(p.t, err)
	require.NoError(p.t, driver.DeleteVolume(p.t.Context(), v.ID))
	return snapshot, id
}

// openStorage opens the storage of a CSI driver of the test, and wants nothing attached at its end.
func (p *process) openStorage() *loopdev.Driver {
	p.t.Helper()
	driver, err := loopdev.Open(p.path("storage"))
	require.NoError(p.t, err)
	p.t.Cleanup(func() {
		attached, err := driver.Attached(context.Background())
		require.NoError(p.t, err)
		require.Empty(p.t, attached)
		require.NoError(p.t, driver.Close())
	})
	return driver
}

// A disk on a volume snapshot by hand: its volume is made, serves, survives a restart, and is deleted with the disk.
// One that is not the expected disk leaves no volume.
func TestAttachVolumeSnapshotByHand(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.leavesNothing()
	driver := p.openStorage()
	snapshot, id := p.builtSnapshot(driver)
	stop := serveCSI(t, driver, p.path("csi"))
	defer stop()
	volumes := func() []blockdev.Volume {
		list, err := driver.ListVolumes(t.Context())
		require.NoError(t, err)
		return list
	}
	p.configure(fmt.Sprintf("[drivers.csi.cloud]\nnode = %q\n", p.path("csi")))
	p.start()

	req := &controlv1.AttachDiskRequest{Driver: "cloud", VolumeSnapshotId: snapshot.ID, ExpectIndexDigest: digest.FromString("another").String(), Keep: true}
	_, err := p.control().AttachDisk(t.Context(), req)
	require.ErrorContains(t, err, "another layer disk than expected")
	require.Empty(t, volumes(), "the volume of a disk that was refused")
	req.ExpectIndexDigest = id.IndexDigest.String()
	resp, err := p.control().AttachDisk(t.Context(), req)
	require.NoError(t, err)
	require.Equal(t, "app", resp.GetDisk().GetName(), "after the volume snapshot")
	require.Equal(t, snapshot.ID, resp.GetDisk().GetVolumeSnapshotId())
	require.Len(t, volumes(), 1)
	require.Equal(t, resp.GetDisk().GetVolumeId(), volumes()[0].ID)
	require.Equal(t, snapshot.ID, volumes()[0].SourceVolumeSnapshotID)

	p.stop()
	p.start()
	require.True(t, p.disk("app").GetServing())
	require.Len(t, volumes(), 1, "the same volume, not another")
	p.detach("app")
	require.Empty(t, volumes())
	p.stop()
}

// TestDiskOnVolumeSnapshot: a configured disk on a volume snapshot of a CSI driver, which comes later than berthd does,
// serves, survives berthd's restart, and leaves nothing.
func TestDiskOnVolumeSnapshot(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.leavesNothing()
	socket := p.path("csi")
	driver := p.openStorage()
	snapshot, id := p.builtSnapshot(driver)
	p.configure(fmt.Sprintf(`
[drivers.csi.cloud]
node = %q
[[disk]]
name = "app"
driver = "cloud"
volume_snapshot = %q
expect = %q
`, socket, snapshot.ID, id.IndexDigest))
	p.start()
	require.False(t, p.disk("app").GetServing(), "its driver is not there yet")
	stop := serveCSI(t, driver, socket)
	p.eventually("the disk", func() bool { return p.disk("app").GetServing() })
	require.Equal(t, "cloud", p.disk("app").GetDriver())
	require.Equal(t, []bool{true, true}, p.pull("app:1.0", "base", "app"))

	// Neither berthd's nor the driver's restart matters to what is mounted.
	device := p.disk("app").GetDevice()
	p.stop()
	stop()
	p.start()
	require.Equal(t, device, p.disk("app").GetDevice())
	require.EqualValues(t, 2, p.disk("app").GetHolders())
	stop = serveCSI(t, driver, socket)
	defer func() { stop() }()

	p.remove(p.committed(layerdisktest.ChainID("base", "app").String()), p.committed(layerdisktest.ChainID("base").String()))
	p.detach("app")
	volumes, err := driver.ListVolumes(t.Context())
	require.NoError(t, err)
	require.Empty(t, volumes)
	p.stop()
}
