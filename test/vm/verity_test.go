//go:build vm

package vm

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/vm"
)

// A layer disk below dm-verity is used through it: what lies below is held by the mapping and left alone, and what
// somebody changes on the storage is an I/O error and never a wrong byte.
func TestVerity(t *testing.T) {
	n := newNode(t)
	busybox, err := image.Busybox()
	require.NoError(t, err)
	layer, mark := marked("file")
	p := n.push("app", busybox, layer, small("app"))
	d := n.build("d", p)
	sector := d.sectorOf(t, mark)
	n.plug(d, vm.DiskSpec{Kind: vm.Virtio, Serial: "data"})
	n.plugFile(vm.DiskSpec{Kind: vm.Virtio, Serial: "hashes", File: n.blank("hashes", 4<<20)})
	const data, hashes = "/dev/disk/by-id/virtio-data", "/dev/disk/by-id/virtio-hashes"
	n.shell("while ! [ -b " + data + " ] || ! [ -b " + hashes + " ]; do sleep 0.1; done")
	formatted := n.shell("veritysetup format " + data + " " + hashes)
	_, root, found := strings.Cut(formatted, "Root hash:")
	require.True(t, found, formatted)
	root, _, _ = strings.Cut(strings.TrimSpace(root), "\n")
	n.shell("veritysetup open " + data + " layers " + hashes + " " + root)

	n.start(discover)
	require.Equal(t, "/dev/dm-0", n.serves(d.found()).GetDevice())
	n.pull(p)
	require.Zero(t, n.fetched(p))
	require.Equal(t, "content of app", n.run(p, "c", "cat", "/s/app"))

	f, err := os.OpenFile(d.file, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("X"), sector*512)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = n.tryRun(p, "bad", "md5sum", "/m/file")
	require.ErrorContains(t, err, "Input/output error")
	require.Equal(t, "content of app", n.run(p, "good", "cat", "/s/app"))
	n.removeImage(p)
	n.detach(d.found())
	n.nothingLeft()

	// By hand, by its name.
	n.shell("berth attach /dev/mapper/layers --name mapped")
	require.Equal(t, d.UUID, n.serves("mapped").GetUuid())
	n.detach("mapped")
	n.nothingLeft()
	n.shell("veritysetup close layers")
}
