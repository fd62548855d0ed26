package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// discoverIn makes the daemon look at loop devices of files in its own directory only.
func discoverIn(p *process, more string) {
	p.configure(fmt.Sprintf("[discover]\nenabled = true\nloops_below = [%q]\n%s\n", p.dir, more))
}

// plug makes the file a block device of the node, as plugging in a disk does, until the test ends.
func plug(t *testing.T, file string) device.Loop {
	t.Helper()
	loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.Background(), loop)) })
	return loop
}

// fail makes reads of the device fail, and has the kernel announce that something about it changed, as many disks do
// when they go; heal undoes it.
func fail(t *testing.T, loop device.Loop, file string) (heal func()) {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(file, 0))
	announce(t, loop)
	return func() {
		t.Helper()
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.Write(data)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		announce(t, loop)
	}
}

func announce(t *testing.T, loop device.Loop) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join("/sys/block", filepath.Base(loop.Path), "uevent"), []byte("change"), 0))
}

func foundName(id layerdisk.Identity) string {
	return "found-" + strings.ReplaceAll(id.UUID, "-", "")[:12]
}

// otherDisk makes a layer disk with one layer of the name.
func otherDisk(t *testing.T, file, name string) layerdisk.Identity {
	t.Helper()
	_, id := layerdisktest.Disk(t, file, layerdisk.FileSystemEROFS, func(layer, dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, layer), []byte(layer), 0o644))
	}, layerdisktest.Image{Reference: "docker.io/library/" + name + ":1", Layers: []string{name}})
	return id
}

func (p *process) serves(name string) {
	p.t.Helper()
	p.eventually(name+" to serve", func() bool { return p.disk(name).GetServing() })
}

func (p *process) gone(name string) {
	p.t.Helper()
	p.eventually(name+" to be gone", func() bool { return p.disk(name) == nil })
}

func TestDiscover(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.leavesNothing()
	first, second := p.path("first.img"), p.path("second.img")
	firstID, secondID := makeDisk(t, first), otherDisk(t, second, "second")
	loop := plug(t, first)
	discoverIn(p, "")
	p.start()

	// What is there at the start is found, proved, kept and shown.
	name := foundName(firstID)
	p.serves(name)
	d := p.disk(name)
	require.Equal(t, "attached", d.GetDriver())
	require.Equal(t, "index:"+firstID.IndexDigest.String(), d.GetVolumeId())
	require.Equal(t, loop.Path, d.GetDevice())
	require.True(t, d.GetKeep())
	require.False(t, d.GetConfigured())
	readonly, err := device.ReadOnly(loop.Path)
	require.NoError(t, err)
	require.True(t, readonly)
	require.Equal(t, []bool{true, true}, p.pull("app:1.0", "base", "app"))

	// What appears too, and what goes is given up.
	other := plug(t, second)
	p.serves(foundName(secondID))
	events, err := p.control().WatchEvents(t.Context(), &controlv1.WatchEventsRequest{})
	require.NoError(t, err)
	next := func(kind controlv1.EventKind, disk string) *controlv1.Event {
		t.Helper()
		for {
			m, err := events.Recv()
			require.NoError(t, err, p.log)
			if m.GetEvent().GetKind() == kind && m.GetEvent().GetDisk() == disk {
				return m.GetEvent()
			}
		}
	}
	start := time.Now()
	heal := fail(t, other, second)
	p.gone(foundName(secondID))
	require.Contains(t, next(controlv1.EventKind_EVENT_KIND_DISK_FAILED, foundName(secondID)).GetReason(), "0 snapshots use it")
	require.Contains(t, next(controlv1.EventKind_EVENT_KIND_DISK_DETACHED, foundName(secondID)).GetReason(), "gone")
	t.Logf("given up after %s", time.Since(start))
	heal()
	p.serves(foundName(secondID))
	next(controlv1.EventKind_EVENT_KIND_DISK_ATTACHED, foundName(secondID))

	// One that is in use stays known; who uses it is told, and its layers are pulled meanwhile.
	heal = fail(t, loop, first)
	e := next(controlv1.EventKind_EVENT_KIND_DISK_FAILED, name)
	require.Contains(t, e.GetReason(), "2 snapshots use it")
	require.Contains(t, p.log.String(), "containers that use it get I/O errors")
	require.False(t, p.disk(name).GetServing())
	require.EqualValues(t, 2, p.disk(name).GetHolders())
	require.NotEmpty(t, p.disk(name).GetLastError())
	explained, err := p.control().ExplainLayers(t.Context(), &controlv1.ExplainLayersRequest{Layers: []*controlv1.LayerName{
		{ChainId: layerdisktest.ChainID("base").String()}}})
	require.NoError(t, err)
	require.False(t, explained.GetLayers()[0].GetHit())
	require.Contains(t, explained.GetLayers()[0].GetReason(), name)
	heal()
	p.serves(name)
	content, err := os.ReadFile(filepath.Join(p.disk(name).GetMountPoint(), layerdisk.LayerDir(0), "base"))
	require.NoError(t, err)
	require.Equal(t, "content of base", string(content))

	// Detached by hand it stays away, until the next start.
	p.detach(foundName(secondID))
	announce(t, other)
	announce(t, loop)
	third := p.path("third.img")
	thirdID := otherDisk(t, third, "third")
	plug(t, third)
	p.serves(foundName(thirdID)) // so what is there was looked at again
	require.Nil(t, p.disk(foundName(secondID)))
	p.kill()
	p.start()
	for _, id := range []layerdisk.Identity{firstID, secondID, thirdID} {
		p.serves(foundName(id))
	}
	require.EqualValues(t, 2, p.disk(name).GetHolders())

	p.remove(p.committed(layerdisktest.ChainID("base", "app").String()), p.committed(layerdisktest.ChainID("base").String()))
	for _, id := range []layerdisk.Identity{firstID, secondID, thirdID} {
		p.detach(foundName(id))
	}
	readonly, err = device.ReadOnly(loop.Path)
	require.NoError(t, err)
	require.False(t, readonly, "the device is given back as it was")
	p.stop()
}

func TestDiscoverCopies(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.leavesNothing()
	file, copied := p.path("disk.img"), p.path("copy.img")
	id := makeDisk(t, file)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(copied, data, 0o600))
	files := map[string]string{}
	loops := map[string]device.Loop{}
	for _, f := range []string{file, copied} {
		loop := plug(t, f)
		files[loop.Path], loops[loop.Path] = f, loop
	}
	discoverIn(p, "")
	p.start()
	p.serves(foundName(id))
	require.Contains(t, p.log.String(), "several devices have the same layer disk, one of them is used")
	st, err := p.control().Status(t.Context(), &controlv1.StatusRequest{})
	require.NoError(t, err)
	require.Len(t, st.GetDisks(), 1)

	// The other takes over when the one in use fails, also under snapshots.
	require.Equal(t, []bool{true, true}, p.pull("app:1.0", "base", "app"))
	used := p.disk(foundName(id)).GetDevice()
	require.Contains(t, files, used)
	heal := fail(t, loops[used], files[used])
	_ = heal // it never comes back
	p.eventually("the copy to take over", func() bool {
		d := p.disk(foundName(id))
		return d.GetServing() && d.GetDevice() != used
	})
	p.remove(p.committed(layerdisktest.ChainID("base", "app").String()), p.committed(layerdisktest.ChainID("base").String()))
	p.detach(foundName(id))
	p.stop()
}

func TestDiscoverRefuses(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.leavesNothing()
	wanted, other := p.path("wanted.img"), p.path("other.img")
	wantedID, otherID := makeDisk(t, wanted), otherDisk(t, other, "other")
	loop := plug(t, other)
	discoverIn(p, fmt.Sprintf("expect = [%q]", wantedID.IndexDigest))
	p.start()
	p.eventually("the refusal", func() bool { return strings.Contains(p.log.String(), "a device with a berth header is not used") })
	require.Contains(t, p.log.String(), otherID.IndexDigest.String())
	require.Contains(t, p.log.String(), loop.Path)
	plug(t, wanted)
	p.serves(foundName(wantedID))
	require.Nil(t, p.disk(foundName(otherID)))
	// By hand neither.
	_, err := p.control().AttachDisk(t.Context(), &controlv1.AttachDiskRequest{Driver: "attached", VolumeId: "index:" + otherID.IndexDigest.String(), Name: "x"})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
	p.detach(foundName(wantedID))
	p.stop()
}

// TestAttachedVolume names a device by its cloud's rules, without discovery.
func TestAttachedVolume(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.leavesNothing()
	file := p.path("disk.img")
	id := makeDisk(t, file)
	p.configure(fmt.Sprintf("[[disk]]\nname = \"data\"\ndriver = \"attached\"\nvolume = \"loop:%s\"\nexpect = %q\n", file, id.IndexDigest))
	p.start()
	loop := plug(t, file) // later than it is wanted
	p.serves("data")
	require.Equal(t, loop.Path, p.disk("data").GetDevice())
	require.True(t, p.disk("data").GetConfigured())
	p.detach("data")
	_, err := p.control().AttachDisk(t.Context(), &controlv1.AttachDiskRequest{Driver: "attached", VolumeId: "nowhere:1"})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	require.ErrorContains(t, err, "alibaba, aws, azure")
	p.stop()
}
