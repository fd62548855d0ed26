//go:build vm

package vm

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/vm"
)

// list prints every entry of a container's root with its attributes and content; what the runtime makes there, and
// what the file system decides of directories, are left out.
const list = `cd /; F='/bin/busybox find . -xdev -mindepth 1 ( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./etc/resolv.conf ) -prune -o'
$F -type d -exec stat -c '%n %f %u %g %Y' {} + | busybox sort
$F ! -type d -exec stat -c '%N %f %u %g %s %h %t:%T %Y' {} + | busybox sort
$F -type f -exec md5sum {} + | busybox sort`

// Debian's kernel sees on a layer disk what was in the layers: every attribute in the file system (berth verify), and
// in a container the same tree as with containerd's own snapshotter.
func TestKernelSeesAllAttributes(t *testing.T) {
	n := newNode(t)
	busybox, err := image.Busybox()
	require.NoError(t, err)
	p := n.push("all", busybox, image.EveryKind(), image.Deletes(), image.Restores())
	d := n.build("d", p)
	n.start(discover)
	t.Log("kernel", n.shell("uname -r"))
	n.plug(d, vm.DiskSpec{Kind: vm.NVMe, Serial: "a"})
	disk := n.serves(d.found())
	out, err := n.guest.Run(t.Context(), "berth", "verify", disk.GetMountPoint())
	require.NoError(t, err, out)
	n.pull(p)
	require.Zero(t, n.fetched(p))
	got := n.run(p, "c", "/bin/sh", "-c", list)
	require.Contains(t, got, "./a/large")

	_, err = n.guest.Run(t.Context(), "ctr", "images", "pull", "--plain-http", "--snapshotter", "overlayfs", p.ref)
	require.NoError(t, err)
	want, err := n.guest.Run(t.Context(), "ctr", "run", "--rm", "--snapshotter", "overlayfs", p.ref, "o", "/bin/sh", "-c", list)
	require.NoError(t, err)
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	require.Len(t, gotLines, len(wantLines))
	for i := range wantLines {
		require.Equal(t, wantLines[i], gotLines[i])
	}
	n.removeImage(p)
	n.detach(d.found())
	n.nothingLeft()
}
