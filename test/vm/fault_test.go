//go:build vm

package vm

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/vm"
)

// marked is a layer with a file that can be found among the disk's bytes.
func marked(name string) (image.Layer, []byte) {
	mark := bytes.Repeat([]byte("mark of "+name+"\n"), 1<<12)
	return image.Layer{Entries: []image.Entry{image.Dir("m"), image.File("m/"+name, string(mark))}}, mark
}

// sectorOf finds the middle of the bytes on the disk.
func (d layerDisk) sectorOf(t *testing.T, content []byte) int64 {
	t.Helper()
	disk, err := os.ReadFile(d.file)
	require.NoError(t, err)
	at := bytes.Index(disk, content)
	require.Positive(t, at)
	return int64(at+len(content)/2) / 512
}

// A sector that cannot be read: in the index the disk is refused, in a layer's file only that file cannot be read,
// berth verify finds it, and berthd serves on.
func TestBadSector(t *testing.T) {
	n := newNode(t)
	busybox, err := image.Busybox()
	require.NoError(t, err)
	layer, mark := marked("file")
	p := n.push("app", busybox, layer, small("app"))
	d := n.build("d", p)
	f, err := os.Open(d.file)
	require.NoError(t, err)
	header, err := layerdisk.ReadHeader(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	n.start(discover)

	broken := n.plug(d, vm.DiskSpec{Kind: vm.Virtio, Serial: "index", BadSectors: []int64{header.IndexOffset / 512}})
	disk := n.failed(d.found())
	require.Contains(t, disk.GetLastError(), "input/output error")
	n.pull(p)
	require.Equal(t, len(p.blobs), n.fetched(p))
	require.Equal(t, "content of app", n.run(p, "c", "cat", "/s/app"))
	n.removeImage(p)
	n.pullOut(broken)
	n.gone(d.found())
	n.registry.Reset()

	broken = n.plug(d, vm.DiskSpec{Kind: vm.NVMe, Serial: "data", BadSectors: []int64{d.sectorOf(t, mark)}})
	disk = n.serves(d.found())
	n.pull(p)
	require.Zero(t, n.fetched(p))
	_, err = n.tryRun(p, "bad", "md5sum", "/m/file")
	require.ErrorContains(t, err, "Input/output error")
	require.Equal(t, "content of app", n.run(p, "good", "cat", "/s/app"))
	out, err := n.guest.Run(t.Context(), "berth", "verify", disk.GetMountPoint())
	require.Error(t, err)
	require.Contains(t, out+err.Error(), "m/file")
	require.Contains(t, out+err.Error(), "input/output error")
	require.True(t, n.disk(d.found()).GetServing())
	n.removeImage(p)
	n.detach(d.found())
	n.nothingLeft()
	n.pullOut(broken)
}

// A disk that is as slow as one that a cloud fills from far away: a pull waits for it for as long as it was told and
// then goes to the registry; when the disk is there, later pulls use it.
func TestSlowDisk(t *testing.T) {
	n := newNode(t)
	p, later := n.app("app"), n.other("later")
	d := n.build("d", p, later)
	n.start("[stage]\nattach_wait = \"1s\"\n[[disk]]\nname = \"slow\"\ndriver = \"attached\"\nvolume = \"serial:slow\"\n")
	plugged := n.plug(d, vm.DiskSpec{Kind: vm.Virtio, Serial: "slow", BytesPerSecond: 512})
	n.shell("while [ \"$(cat /sys/block/vda/serial 2>/dev/null)\" != slow ]; do sleep 0.1; done")
	n.pull(p)
	require.Equal(t, len(p.blobs), n.fetched(p))
	require.False(t, n.disk("slow").GetServing(), "it was not there in time")
	require.Equal(t, "content of app", n.run(p, "c", "cat", "/s/app"))

	require.NoError(t, n.guest.SetSpeed(t.Context(), plugged, 0))
	n.serves("slow")
	n.pull(later)
	require.Zero(t, n.fetched(later))
	require.Equal(t, "content of later", n.run(later, "l", "cat", "/s/later"))
	n.removeImage(p)
	n.removeImage(later)
	n.detach("slow")
	n.nothingLeft()
}
