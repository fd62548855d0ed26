//go:build vm

package vm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/vm"
)

// blank makes a sparse file.
func (n *node) blank(name string, size int64) string {
	n.Helper()
	file := filepath.Join(n.dir, name)
	require.NoError(n, os.WriteFile(file, nil, 0o600))
	require.NoError(n, os.Truncate(file, size))
	return file
}

func hash(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

// partitioned puts the disk into the second partition of a new one.
func (n *node) partitioned(d layerDisk) layerDisk {
	n.Helper()
	const first, second = 2048, 4096 // sectors
	content, err := os.ReadFile(d.file)
	require.NoError(n, err)
	disk := make([]byte, second*512+len(content))
	copy(disk[second*512:], content)
	for i, p := range [][2]int{{first, second - first}, {second, len(content) / 512}} {
		entry := disk[446+16*i:]
		entry[4] = 0x83
		binary.LittleEndian.PutUint32(entry[8:], uint32(p[0]))
		binary.LittleEndian.PutUint32(entry[12:], uint32(p[1]))
	}
	disk[510], disk[511] = 0x55, 0xaa
	d.file = filepath.Join(n.dir, "partitioned.img")
	require.NoError(n, os.WriteFile(d.file, disk, 0o600))
	return d
}

// A layer disk in a partition is found. Disks of others, with a file system, swap space or partitions, are left alone:
// their owners can use them while berthd runs, and not a byte changes when they are plugged in again.
func TestForeignDisks(t *testing.T) {
	n := newNode(t)
	p := n.app("app")
	d := n.partitioned(n.build("d", p))
	n.start(discover)
	foreign := []struct{ file, make, use, leave string }{
		{n.blank("ext4", 16<<20), "mkfs.ext4 -q $DEV", "mount $DEV /mnt && echo theirs > /mnt/file", "umount /mnt"},
		{n.blank("swap", 16<<20), "mkswap $DEV", "swapon $DEV", "swapoff $DEV"},
		{n.blank("gpt", 16<<20), "echo ,, | sfdisk -q -X gpt $DEV; udevadm settle; mkfs.ext4 -q ${DEV}1", "mount -o ro ${DEV}1 /mnt", "umount /mnt"},
	}
	for _, f := range foreign {
		plugged := n.plugFile(vm.DiskSpec{Kind: vm.Virtio, File: f.file, Serial: "foreign"})
		script := "while ! DEV=$(readlink -f /dev/disk/by-id/virtio-foreign) || ! [ -b \"$DEV\" ]; do sleep 0.1; done\n"
		n.shell(script + f.make)
		n.shell(script + f.use + "\nsync\n" + f.leave)
		n.pullOut(plugged)
		n.shell("while [ -e /dev/disk/by-id/virtio-foreign ]; do sleep 0.1; done")
	}
	before := make(map[string]string)
	for i, f := range foreign {
		before[f.file] = hash(t, f.file)
		n.plugFile(vm.DiskSpec{Kind: vm.Kind(i % 2), File: f.file, Serial: "foreign" + string(rune('a'+i))})
	}
	layers := hash(t, d.file)
	n.plug(d, vm.DiskSpec{Kind: vm.NVMe, Serial: "layers"})
	disk := n.serves(d.found())
	require.True(t, strings.HasSuffix(disk.GetDevice(), "p2"), disk.GetDevice())
	n.pull(p)
	require.Zero(t, n.fetched(p))
	require.Equal(t, "content of app", n.run(p, "c", "cat", "/s/app"))

	require.Equal(t, "0\n0\n0\n", n.shell("lsblk -dno RO,SERIAL | grep foreign | cut -c1-2 | tr -d ' '"), "berthd has not made them read-only")
	require.Len(t, n.status().GetDisks(), 1)
	n.removeImage(p)
	n.detach(d.found())
	n.nothingLeft()
	for _, f := range foreign {
		require.Equal(t, before[f.file], hash(t, f.file), f.file)
	}
	require.Equal(t, layers, hash(t, d.file))
}

// Only the disk that is expected is used; another is refused, and why is said.
func TestExpected(t *testing.T) {
	n := newNode(t)
	wanted, other := n.build("wanted", n.push("wanted", small("wanted"))), n.build("other", n.push("other", small("other")))
	n.startBerthd(discover + "expect = [\"" + wanted.IndexDigest.String() + "\"]\n")
	n.plug(other, vm.DiskSpec{Kind: vm.NVMe, Serial: "other"})
	n.eventuallyLogged("index " + other.IndexDigest.String() + " is not among those expected")
	n.plug(wanted, vm.DiskSpec{Kind: vm.NVMe, Serial: "wanted"})
	n.serves(wanted.found())
	require.Len(t, n.status().GetDisks(), 1)
	// By its name neither, if the digest is another.
	_, err := n.guest.Run(t.Context(), "berth", "attach", "--driver", "attached", "--volume", "serial:other", "--name", "x",
		"--expect", wanted.IndexDigest.String())
	require.ErrorContains(t, err, "another layer disk than expected")
	n.detach(wanted.found())
	n.nothingLeft()
}
