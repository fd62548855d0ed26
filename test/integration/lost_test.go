//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

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
			require.Regexp(t, `2 of 2 layers are on disks`, n.explain(one))
			n.requireSameTree(one)
			n.requireSameTree(two)

			n.registry.SetFault(registry.Off)
			n.reboot()
			require.Equal(t, "content of two", n.run(two, "third", "cat", "/s/two"))
		})
	}
}
