package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/layerdisk/layerdisktest"
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

// TestDiskOnVolumeSnapshot: a configured disk on a volume snapshot of a CSI driver, which comes later than berthd does,
// serves, survives berthd's restart, and leaves nothing.
func TestDiskOnVolumeSnapshot(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.leavesNothing()
	socket := p.path("csi")
	driver, err := loopdev.Open(p.path("storage"))
	require.NoError(t, err)
	t.Cleanup(func() {
		attached, err := driver.Attached(context.Background())
		require.NoError(t, err)
		require.Empty(t, attached)
		require.NoError(t, driver.Close())
	})

	// As a builder leaves it: a volume snapshot.
	v, err := driver.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "build", SizeBytes: 16 << 20})
	require.NoError(t, err)
	id := makeDisk(t, p.path("disk.img"))
	data, err := os.ReadFile(p.path("disk.img"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(p.path("disk.img")))
	f, err := os.OpenFile(filepath.Join(p.path("storage"), "volumes", v.ID, "disk"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(data)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	snapshot, err := driver.CreateSnapshot(t.Context(), "app", v.ID)
	require.NoError(t, err)
	require.NoError(t, driver.DeleteVolume(t.Context(), v.ID))

	p.configure(fmt.Sprintf(`
[drivers.csi.cloud]
node = %q
[[disk]]
name = "app"
driver = "cloud"
snapshot = %q
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
