//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

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

// loseHeaderAtRestart has the block with the disk's header overwritten while berthd is down. Under a mounted file
// system nothing is lost by that until the device is asked again, which it is at most once a second.
func (n *node) loseHeaderAtRestart(disk string) {
	n.Helper()
	require.NoError(n, n.berthd.Stop())
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	require.NoError(n, err)
	_, err = f.WriteAt(make([]byte, 4096), 0)
	require.NoError(n, err)
	require.NoError(n, f.Close())
	require.NoError(n, mounts.UnmountBelow(filepath.Join(n.dir, "b")))
	require.NoError(n, loop.DetachBelow(n.dir))
	n.startBerthd()
}

// ways to lose a disk.
func waysToLose() map[string]func(n *node, disk string) {
	return map[string]func(n *node, disk string){
		"moved at restart": (*node).loseAtRestart, "truncated": (*node).loseWhileServing,
		"header zeroed at restart": (*node).loseHeaderAtRestart,
	}
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
			// The registry has all but the layer that the stranger shares.
			n.registry.SetBlobFault(one.blobs[0], registry.Off)
			pullErr := n.tryPull(stranger, "")
			for _, want := range []string{"layer disk", "make layer sha256:", one.ref, one.blobs[0].String()} {
				require.ErrorContains(t, pullErr, want)
			}
			n.registry.SetBlobFault(one.blobs[0], registry.NoFault)
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

// What is lost and cannot be made anew is in the open: status and doctor name disk, layers, images, and the container
// that runs from the lost disk. release says what it removes, keeps the container, and names it. When that is gone too,
// a pull with the credentials that berthd has not got brings the image back.
func TestLostDiskIsInTheOpen(t *testing.T) {
	// Over a restart the container would keep the device there.
	for way, lose := range map[string]func(n *node, disk string){"truncated": (*node).loseWhileServing} {
		t.Run(way, func(t *testing.T) {
			n := newNode(t)
			kinds := image.EveryKind()
			one := n.push("one", n.busybox(), kinds)
			sibling := n.push("sibling", n.busybox(), kinds, small("sibling"))
			disk := n.build("a", one, sibling)
			n.attachAtStart("a", disk)
			n.start()
			n.pull(one)
			n.pull(sibling)
			n.runDetached(one, "loose")
			require.NotContains(t, n.cli("status"), "LOST LAYER")
			require.NotContains(t, n.cli("status"), "lost disk")
			require.Empty(t, lostOf(n.doctor()))

			lose(n, disk)
			n.registry.RequireLogin("user", "secret")
			_, err := n.containerd.Run(t.Context(), one.ref, "first", containerd.RunOptions{Snapshotter: berth.PluginName}, "true")
			require.ErrorContains(t, err, one.ref)
			space := filepath.Base(n.dir)
			running := "container loose in namespace " + space
			status := n.cli("status")
			for _, want := range []string{
				"LOST LAYER", "image " + one.ref + " in namespace " + space, "image " + sibling.ref + " in namespace " + space,
				"failed", "berth release a", running + " runs from lost disk a",
			} {
				require.Contains(t, status, want)
			}
			lost := n.requireFailure("lost layers", "image "+one.ref+" in namespace "+space)
			require.Contains(t, lost.Detail, "of disk a")
			require.Contains(t, lost.Detail, "could not be made anew")
			require.Contains(t, lost.Advice, "berth release a")
			require.Contains(t, n.requireFailure("container loose", "disk a").Detail, "cannot be saved")

			out, err := n.berthd.CLI(t.Context(), "release", one.ref)
			require.ErrorContains(t, err, "nothing is removed")
			require.Contains(t, out, "would remove image "+sibling.ref)
			out, err = n.berthd.CLI(t.Context(), "release", "--yes", one.ref)
			require.ErrorContains(t, err, "needs lost layers still")
			require.Contains(t, out, "removed image "+one.ref+" in namespace "+space)
			require.Contains(t, out, "stays: "+running)
			require.NotContains(t, strings.Join(n.inContainerd(space), "\n"), "image ")
			require.NoError(t, n.containerd.RemoveContainer(t.Context(), "", "loose"))
			n.collectGarbage(space)
			require.Empty(t, n.inContainerd(space))
			require.Empty(t, lostOf(n.doctor()))
			require.NotContains(t, n.cli("status"), "LOST LAYER")

			require.NoError(t, n.containerd.Pull(t.Context(), sibling.ref, containerd.PullOptions{
				Snapshotter: berth.PluginName, PlainHTTP: n.registry.PlainHTTP(), User: "user:secret",
			}))
			require.Equal(t, "content of sibling", n.run(sibling, "again", "cat", "/s/sibling"))
		})
	}
}

// lostOf are the failures that tell of lost layers and of containers on lost disks.
func lostOf(failed []diagnosis) (lost []diagnosis) {
	for _, d := range failed {
		if d.Name == "lost layers" || strings.HasPrefix(d.Name, "container ") {
			lost = append(lost, d)
		}
	}
	return lost
}

// Layers are made anew with the credentials and the hosts.toml that containerd's own configuration has for Kubernetes.
// CRI is not shown what the fetch needs, and a pod starts whose pause image shares its layer with the lost disk.
func TestLostDiskIsMadeAnewForPods(t *testing.T) {
	n := newNode(t)
	one := n.push("one", n.busybox(), image.EveryKind())
	pause := n.push("pause", n.busybox())
	n.pauseImage = pause.ref
	disk := n.build("a", one, pause)
	n.attachAtStart("a", disk)
	n.start()
	require.NoError(t, n.containerd.Configure(func(c *containerd.Config) {
		plugin := "io.containerd.cri.v1.images"
		if c.Legacy() {
			plugin = "io.containerd.grpc.v1.cri"
		}
		c.Snippet = fmt.Appendf(c.Snippet, "\n[plugins.'%s'.registry.configs.'%s'.auth]\nusername = 'user'\npassword = 'secret'\n",
			plugin, n.registry.Host())
	}))
	require.NoError(t, n.containerd.Stop())
	require.NoError(t, n.containerd.Start(t.Context()))
	c := n.cri()
	for _, p := range []pushed{one, pause} {
		_, err := c.Pull(t.Context(), p.ref)
		require.NoError(t, err)
	}
	before, err := c.Images(t.Context())
	require.NoError(t, err)
	require.Zero(t, n.fetched(one)+n.fetched(pause))

	n.loseWhileServing(disk)
	n.registry.RequireLogin("user", "secret")
	pod := n.pod(c, "web", one.ref, 0)
	out, err := pod.Exec(t.Context(), "cat", "/a/setuid")
	require.NoError(t, err)
	require.Equal(t, "x", out)
	require.Contains(t, n.berthd.Log(), "layer of a lost disk is made anew")
	after, err := c.Images(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, imageNames(before), imageNames(after))
	require.NotContains(t, strings.Join(n.inContainerd(criNamespace), "\n"), "berth.dev/heal")
}

// imageNames are all that CRI shows of images.
func imageNames(list []*runtime.Image) (names []string) {
	for _, i := range list {
		names = append(names, i.GetId())
		names = append(names, i.GetRepoTags()...)
		names = append(names, i.GetRepoDigests()...)
	}
	return names
}
