//go:build integration

package integration

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/image"
)

// forEachConcurrency runs a test with sequential and, where containerd knows it, with parallel unpacking.
func forEachConcurrency(t *testing.T, test func(*node)) {
	t.Parallel()
	for _, unpacks := range []int{1, 4} {
		if unpacks > 1 && !(containerd.Config{Version: containerdVersion()}).ParallelUnpack() {
			continue
		}
		t.Run(fmt.Sprintf("unpacks=%d", unpacks), func(t *testing.T) {
			n := newNode(t)
			n.unpacks = unpacks
			test(n)
		})
	}
}

// M-1, M-3, E-12: all layers are on the disk: nothing is fetched, nothing lies on the local file system, and a
// container sees what it would see with overlayfs.
func TestFullHit(t *testing.T) {
	forEachConcurrency(t, func(n *node) {
		p := n.push("full", n.fiveLayers()...)
		n.attachAtStart("d", n.build("d", p))
		n.start()
		n.pull(p)
		require.Zero(n, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
		for i, u := range n.usage(p) {
			require.Zero(n, u.Size, "local bytes of layer %d", i)
		}
		require.Equal(n, "content of top", n.run(p, "c", "cat", "/s/top"))

		status := n.status()
		require.Equal(n, len(p.blobs), berth.Sum(status.Hits))
		require.EqualValues(n, len(p.blobs), status.Adopted)
		disk, err := status.Disk("d")
		require.NoError(n, err)
		require.EqualValues(n, len(p.blobs), disk.Layers)
		require.EqualValues(n, len(p.blobs), disk.LayersInUse)
		n.requireSameTree(p)
	})
}

// M-4: of five layers the disk has the lowest three, and two are fetched.
func TestLowestLayersHit(t *testing.T) {
	forEachConcurrency(t, func(n *node) {
		layers := n.fiveLayers()
		p, lower := n.push("all", layers...), n.push("lower", layers[:3]...)
		n.attachAtStart("d", n.build("d", lower))
		n.start()
		n.pull(p)
		require.Equal(n, 2, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
		for _, b := range p.blobs[:3] {
			require.NotContains(n, n.registry.Blobs(), b)
		}
		require.Equal(n, "content of top", n.run(p, "c", "cat", "/s/top"))
		n.requireSameTree(p)
	})
}

// The lowest layer is missing, so containerd fetches all; what lies above may still be taken from the disk.
func TestLowestLayerMissing(t *testing.T) {
	forEachConcurrency(t, func(n *node) {
		layers := n.fiveLayers()
		p := n.push("all", layers...)
		other := n.push("other", append([]image.Layer{small("other base")}, layers[1:]...)...)
		n.attachAtStart("d", n.build("d", other))
		n.start()
		n.pull(p)
		require.Contains(n, n.registry.Blobs(), p.blobs[0])
		require.Equal(n, "content of top", n.run(p, "c", "cat", "/s/top"))
		n.requireSameTree(p)
	})
}

func TestNothingOnTheDisk(t *testing.T) {
	forEachConcurrency(t, func(n *node) {
		p, other := n.push("wanted", n.fiveLayers()...), n.push("other", small("other"))
		n.attachAtStart("d", n.build("d", other))
		n.start()
		n.pull(p)
		require.Equal(n, len(p.blobs), n.fetched(p))
		require.Zero(n, berth.Sum(n.status().Hits))
		require.Equal(n, "content of top", n.run(p, "c", "cat", "/s/top"))
		n.requireSameTree(p)
	})
}

func TestNoDiskAtAll(t *testing.T) {
	n := newNode(t)
	p := n.push("plain", n.fiveLayers()...)
	n.start()
	n.pull(p)
	require.Equal(t, len(p.blobs), n.fetched(p))
	n.requireSameTree(p)
}

func TestImagesOverTwoDisks(t *testing.T) {
	n := newNode(t)
	layers := n.fiveLayers()
	a, b := n.push("a", layers...), n.push("b", n.busybox(), small("b"))
	n.attachAtStart("one", n.build("one", a))
	n.attachAtStart("two", n.build("two", b))
	n.start()
	n.pull(a)
	n.pull(b)
	require.Zero(t, n.fetched(a)+n.fetched(b))
	require.Equal(t, "content of top", n.run(a, "ca", "cat", "/s/top"))
	require.Equal(t, "content of b", n.run(b, "cb", "cat", "/s/b"))
	for _, name := range []string{"one", "two"} {
		disk, err := n.status().Disk(name)
		require.NoError(t, err)
		require.NotZero(t, disk.LayersInUse, "disk %s", name)
	}
	n.requireSameTree(a)
	n.requireSameTree(b)
}

// M-3: one image whose layers lie on two disks: the second disk has them on top of another base, so that only diff IDs
// or blob digests can match them, which containerd tells since 2.1.
func TestLayersOverTwoDisks(t *testing.T) {
	n := newNode(t)
	layers := n.fiveLayers()
	p, lower := n.push("all", layers...), n.push("lower", layers[:3]...)
	upper := n.push("upper", append([]image.Layer{small("other base")}, layers[3:]...)...)
	n.attachAtStart("lower", n.build("lower", lower))
	n.attachAtStart("upper", n.build("upper", upper))
	n.start()
	n.pull(p)
	want := 0
	if legacy() || strings.HasPrefix(containerdVersion(), "2.0.") {
		want = 2
	}
	require.Equal(t, want, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	n.requireSameTree(p)
}

// As many layers as overlay mounts are asked to bear, over three disks and the local one.
func TestManyLayersMount(t *testing.T) {
	n := newNode(t)
	const count = 127
	layers := []image.Layer{n.busybox()}
	for i := 1; i < count; i++ {
		layers = append(layers, small(fmt.Sprintf("layer-%d", i)))
	}
	p := n.push("many", layers...)
	base := []image.Layer{small("other base")}
	n.attachAtStart("one", n.build("one", n.push("one", layers[:40]...)))
	n.attachAtStart("two", n.build("two", n.push("two", append(base, layers[40:80]...)...)))
	n.attachAtStart("three", n.build("three", n.push("three", append(base, layers[80:110]...)...)))
	n.start()
	n.pull(p)
	require.LessOrEqual(t, n.fetched(p), count-40)
	out := n.run(p, "c", "sh", "-c", "ls /s")
	require.Len(t, strings.Fields(out), count-1)
	n.requireSameTree(p)
}

// Two namespaces of containerd: each has its own snapshots of the same layers, and losing one is no loss to the other.
func TestTwoNamespaces(t *testing.T) {
	n := newNode(t)
	layers := n.fiveLayers()
	p, lower := n.push("all", layers...), n.push("lower", layers[:3]...)
	n.attachAtStart("d", n.build("d", lower))
	n.start()
	second := n.containerd.Config().Namespace + "-2"
	n.Cleanup(func() { require.NoError(t, n.forgetNamespace(second)) })
	n.pull(p)
	require.NoError(t, n.tryPull(p, second))
	run := func(namespace, name string) string {
		out, err := n.containerd.Run(t.Context(), p.ref, name,
			containerd.RunOptions{Namespace: namespace, Snapshotter: berth.PluginName}, "cat", "/s/top", "/a/setuid")
		require.NoError(t, err)
		return out
	}
	require.Equal(t, "content of topagain", run("", "c"))
	require.Equal(t, "content of topagain", run(second, "c"))
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	require.Equal(t, "content of topagain", run(second, "c"))
	require.NoError(t, n.tryPull(p, ""))
	require.Equal(t, "content of topagain", run("", "c"))
	n.requireSameTree(p)
}

// Images that share layers are pulled at once: each layer is adopted or fetched once, and each image is whole.
func TestConcurrentPulls(t *testing.T) {
	forEachConcurrency(t, func(n *node) {
		shared := n.fiveLayers()
		var images []pushed
		for i := range 6 {
			images = append(images, n.push(fmt.Sprintf("image-%d", i), append(shared[:5:5], small(fmt.Sprintf("own-%d", i)))...))
		}
		n.attachAtStart("d", n.build("d", images[:3]...))
		n.start()
		var pulls errgroup.Group
		for _, p := range images {
			pulls.Go(func() error { return n.tryPull(p, "") })
		}
		require.NoError(n, pulls.Wait())
		for i, p := range images {
			require.Equal(n, fmt.Sprintf("content of own-%d", i), n.run(p, fmt.Sprintf("c%d", i), "cat", fmt.Sprintf("/s/own-%d", i)))
		}
		for _, p := range images[:3] {
			require.Zero(n, n.fetched(p))
		}
		for _, p := range images[3:] {
			require.Equal(n, 1, n.fetched(p))
		}
		n.requireSameTree(images[0])
		n.requireSameTree(images[5])
	})
}

// A pull may lose against a removal, but must then say so; the next one is right, and nothing stays held.
func TestPullRacesRemoval(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	n.attachAtStart("d", n.build("d", p))
	n.start()
	var (
		wg  sync.WaitGroup
		own = n.containerd.Config().Namespace
	)
	for range 15 {
		wg.Go(func() {
			if err := n.tryPull(p, own); err != nil {
				t.Logf("pull that lost the race: %v", err)
			}
		})
		wg.Go(func() {
			if err := n.containerd.RemoveImage(t.Context(), own, p.ref); err != nil {
				t.Logf("removal that lost the race: %v", err)
			}
		})
		wg.Wait()
	}
	n.pull(p)
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	n.requireSameTree(p)
	require.NoError(t, n.containerd.RemoveImage(t.Context(), own, p.ref))
	n.eventually("nothing to be held", func() error {
		if s := n.status(); s.Adopted != 0 {
			return fmt.Errorf("%d snapshots are adopted", s.Adopted)
		}
		return nil
	})
}

// The tools that look at a disk agree with what was built.
func TestCommandsOnADisk(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	disk := n.build("d", p)
	n.attachAtStart("d", disk)
	n.start()
	n.pull(p)
	for _, args := range [][]string{{"inspect", disk}, {"verify", disk}} {
		out, err := n.berthd.CLI(t.Context(), args...)
		require.NoError(t, err)
		require.NotEmpty(t, out, "berth %v", args)
	}
	args := []string{"explain", "--containerd-address", n.containerd.Socket(), "--namespace", n.containerd.Config().Namespace, p.ref}
	out, err := n.berthd.CLI(t.Context(), args...)
	require.NoError(t, err)
	for _, chain := range n.chainIDs(p) {
		require.Contains(t, out, chain.Encoded()[:12])
	}
}
