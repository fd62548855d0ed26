//go:build integration

package integration

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/cri"
	"berth.dev/berth/test/harness/image"
)

// cri is a kubelet's connection to the node.
func (n *node) cri() *cri.Client {
	n.Helper()
	c, err := cri.Dial(n.containerd.Socket())
	require.NoError(n, err)
	n.Cleanup(func() { require.NoError(n, c.Close()) })
	return c
}

func (n *node) pod(c *cri.Client, name, ref string, base uint32) *cri.Pod {
	n.Helper()
	group := "/" + filepath.Base(n.dir) + "-cri"
	n.Cleanup(func() {
		require.NoError(n, n.containerd.Close())
		require.NoError(n, n.forgetNamespace(strings.TrimPrefix(group, "/")))
	})
	pod, err := c.Run(n.Context(), cri.PodSpec{
		Name: name, Image: ref, Command: image.Pause(), CgroupParent: group, LogDir: n.dir, UserNamespaceBase: base,
	})
	require.NoError(n, err)
	return pod
}

// E-13: what a kubelet does for a pod whose image it does not have fetches no layer that is on the disk.
func TestCRI(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	n.pauseImage = n.push("pause", n.busybox()).ref
	n.attachAtStart("d", n.build("d", p))
	n.start()
	c := n.cri()
	ref, err := c.Pull(t.Context(), p.ref)
	require.NoError(t, err)
	require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	pod := n.pod(c, "pod", ref, 0)
	out, err := pod.Exec(t.Context(), "cat", "/s/top", "/a/setuid")
	require.NoError(t, err)
	require.Equal(t, "content of topagain", out)
	t.Logf("CreateContainer took %v", pod.CreateContainer)

	systems, err := c.FsInfo(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, systems)
	require.Equal(t, n.berthd.Root(), systems[0].GetFsId().GetMountpoint(), "CRI measures berth's root")

	require.NoError(t, pod.Remove(t.Context()))
	require.NoError(t, c.RemoveImage(t.Context(), p.ref))
	n.eventually("nothing of the image to be held", func() error {
		status := n.status()
		d, err := status.Disk("d")
		if err != nil {
			return err
		}
		if d.LayersInUse > 1 { // the pause image shares the lowest layer
			return errHeld(d.LayersInUse)
		}
		return nil
	})
}

// A pod in a user namespace sees its image's files as its own, by id-mapped mounts of the layers on the disk: nothing
// is copied. Before 2.3 containerd cannot map layers on several file systems, so "berth config containerd" leaves out
// the capability, and containerd makes a copy.
func TestUserNamespacePod(t *testing.T) {
	n := newNode(t)
	layers := []image.Layer{n.busybox(), {Entries: []image.Entry{
		image.Dir("o", image.Owner(1000, 1001)), image.File("o/own", "o", image.Owner(1000, 65535)),
	}}}
	far := mapsSeveralFileSystems() // the copy is refused for owners outside of the mapped ids
	if far {
		layers = append(layers, image.EveryKind(), image.Layer{Entries: []image.Entry{image.File("o/far", "f", image.Owner(65536, 4000000000))}})
	}
	p := n.push("owners", layers...)
	n.pauseImage = n.push("pause", n.busybox()).ref
	n.attachAtStart("d", n.build("d", p))
	n.start()
	c := n.cri()
	ref, err := c.Pull(t.Context(), p.ref)
	require.NoError(t, err)
	before := n.localBytes()
	pod := n.pod(c, "userns", ref, 1<<20)
	out, err := pod.Exec(t.Context(), "stat", "-c", "%u:%g", "/bin/busybox", "/o", "/o/own")
	require.NoError(t, err)
	require.Equal(t, "0:0\n1000:1001\n1000:65535\n", out)
	if far {
		out, err := pod.Exec(t.Context(), "stat", "-c", "%u:%g", "/o/far")
		require.NoError(t, err)
		require.Equal(t, "65534:65534\n", out)
	}
	out, err = pod.Exec(t.Context(), "sh", "-c", "echo new > /o/new && stat -c %u:%g /o/new && cat /proc/self/uid_map")
	require.NoError(t, err)
	require.Equal(t, []string{"0:0", "0", "1048576", "65536"}, strings.Fields(out))
	t.Logf("CreateContainer took %v", pod.CreateContainer)
	if far {
		require.Less(t, n.localBytes()-before, int64(1<<20), "the image is copied")
	}
	require.NoError(t, pod.Remove(t.Context()))
}

// A pod's image is found by what CRI does after a restart of everything with no registry.
func TestCRIAfterReboot(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	pause := n.push("pause", n.busybox())
	n.pauseImage = pause.ref
	n.attachAtStart("d", n.build("d", p, pause))
	n.start()
	c := n.cri()
	ref, err := c.Pull(t.Context(), p.ref)
	require.NoError(t, err)
	_, err = c.Pull(t.Context(), pause.ref)
	require.NoError(t, err)
	n.reboot()
	pod := n.pod(n.cri(), "again", ref, 0)
	out, err := pod.Exec(t.Context(), "cat", "/s/top")
	require.NoError(t, err)
	require.Equal(t, "content of top", out)
	require.Zero(t, n.fetched(p))
	require.NoError(t, pod.Remove(t.Context()))
}

// errHeld is a number of layers that are still in use.
type errHeld int64

func (e errHeld) Error() string { return strconv.FormatInt(int64(e), 10) + " layers are in use" }

// mapsSeveralFileSystems says that this containerd id-maps layers wherever they are mounted.
func mapsSeveralFileSystems() bool {
	return !slices.ContainsFunc([]string{"1.", "2.0.", "2.1.", "2.2."}, func(old string) bool {
		return strings.HasPrefix(containerdVersion(), old)
	})
}
