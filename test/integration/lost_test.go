//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/mounts"
	"berth.dev/berth/test/harness/registry"
)

// loseAtRestart has the disk's file moved away while berthd is down, as when storage is mounted late after a reboot.
func (n *node) loseAtRestart(disk string) {
	n.Helper()
	require.NoError(n, n.berthd.Stop())
	require.NoError(n, os.Rename(disk, disk+".away"))
	require.NoError(n, mounts.UnmountBelow(filepath.Join(n.dir, "b")))
	require.NoError(n, loop.DetachBelow(n.dir))
	n.startBerthd()
}

// loseWhileServing has the disk's bytes go away under the mounted file system.
func (n *node) loseWhileServing(disk string) {
	n.Helper()
	require.NoError(n, os.Truncate(disk, 0))
	dropCaches(n.T)
}

// ways to lose a disk.
func waysToLose() map[string]func(n *node, disk string) {
	return map[string]func(n *node, disk string){"moved at restart": (*node).loseAtRestart, "truncated": (*node).loseWhileServing}
}

// What was adopted from a disk that is lost is served by another disk that has the same layers: containers of images
// pulled before start, an image that shares layers is pulled and started, and explain names the disk that serves. The
// registry is out of reach for layers all the while, so nothing can have come from there.
func TestLostDiskIsReplacedByAnother(t *testing.T) {
	for way, lose := range waysToLose() {
		t.Run(way, func(t *testing.T) {
			n := newNode(t)
			one := n.push("one", n.busybox(), image.EveryKind())
			two := n.push("two", n.busybox(), image.EveryKind(), small("two"))
			a, b := n.build("a", one), n.build("b", one, two)
			n.attachAtStart("a", a)
			n.start()
			n.pull(one)
			require.Zero(t, n.fetched(one))
			_, err := n.berthd.CLI(t.Context(), "attach", b, "--name", "b")
			require.NoError(t, err)

			lose(n, a)
			n.pull(two)
			require.Equal(t, "content of two", n.run(two, "second", "cat", "/s/two"))
			require.Equal(t, "x", n.run(one, "first", "cat", "/a/setuid"))
			require.Zero(t, n.fetched(one)+n.fetched(two), "layer blobs fetched: %v", n.registry.Blobs())
			require.Contains(t, n.explain(one), "disk b, layer 1, by chain-id")
			n.requireSameTree(one)
			n.requireSameTree(two)

			n.registry.SetFault(registry.Off)
			n.reboot()
			require.Equal(t, "content of two", n.run(two, "third", "cat", "/s/two"))
		})
	}
}

// With no other disk, what is lost is made anew from the registry when something needs it: an image that was pulled
// before starts, one that shares layers with it is pulled and starts, and so does a stranger that shares only the base.
// Every attribute of the files is as overlayfs has it, and the layers are on the node from then on.
func TestLostDiskIsMadeAnew(t *testing.T) {
	for way, lose := range waysToLose() {
		t.Run(way, func(t *testing.T) {
			n := newNode(t)
			kinds := image.EveryKind()
			one := n.push("one", n.busybox(), kinds)
			sibling := n.push("sibling", n.busybox(), kinds, small("sibling"))
			stranger := n.push("stranger", n.busybox(), small("stranger"))
			disk := n.build("a", one)
			n.attachAtStart("a", disk)
			n.start()
			n.pull(one)
			require.Zero(t, n.fetched(one))
			lose(n, disk)

			n.pull(stranger)
			require.Equal(t, "content of stranger", n.run(stranger, "stranger", "cat", "/s/stranger"))
			require.Equal(t, "x", n.run(one, "first", "cat", "/a/setuid"))
			n.pull(sibling)
			require.Equal(t, "content of sibling", n.run(sibling, "sibling", "cat", "/s/sibling"))
			require.Contains(t, n.berthd.Log(), "layer of a lost disk is made anew")
			images, err := n.containerd.Ctr(t.Context(), "", "images", "ls", "-q")
			require.NoError(t, err)
			require.NotContains(t, images, "berth.dev/heal", "what a fetch needs is taken back")

			n.registry.SetFault(registry.Off)
			n.reboot()
			require.Equal(t, "x", n.run(one, "again", "cat", "/a/setuid"))
			require.Equal(t, "content of sibling", n.run(sibling, "rebooted", "cat", "/s/sibling"))
			n.registry.SetFault(registry.NoFault)
			n.requireSameTree(one)
			n.requireSameTree(sibling)
			n.requireSameTree(stranger)
		})
	}
}

// With neither another disk nor a registry the error says which layer is missing, of which image, and what helps. As
// soon as the registry answers, everything works.
func TestLostDiskWithNothingInReach(t *testing.T) {
	for way, lose := range waysToLose() {
		t.Run(way, func(t *testing.T) {
			n := newNode(t)
			kinds := image.EveryKind()
			one := n.push("one", n.busybox(), kinds)
			stranger := n.push("stranger", n.busybox(), small("stranger"))
			disk := n.build("a", one)
			n.attachAtStart("a", disk)
			n.start()
			n.pull(one)
			lose(n, disk)
			n.registry.SetFault(registry.Off)
			_, err := n.containerd.Run(t.Context(), one.ref, "first", containerd.RunOptions{Snapshotter: berth.PluginName}, "true")
			require.Error(t, err)
			for _, want := range []string{"layer disk", "make layer sha256:", one.ref, "attach a disk that has the layer", "or remove the image"} {
				require.ErrorContains(t, err, want)
			}
			n.registry.SetFault(registry.NoFault)
			n.pull(stranger)
			require.Equal(t, "content of stranger", n.run(stranger, "stranger", "cat", "/s/stranger"))
			require.Equal(t, "x", n.run(one, "second", "cat", "/a/setuid"))
		})
	}
}
