//go:build integration

package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/cri"
	"berth.dev/berth/test/harness/registry"
)

const criNamespace = "k8s.io"

// withImport has berthd register images in the namespaces of CRI and of ctr.
func (n *node) withImport(change func(*berth.Import)) {
	n.configure = func(c *berth.Config) {
		c.Import = &berth.Import{Containerd: filepath.Join(n.dir, "c", "c.sock"), Namespaces: []string{criNamespace, filepath.Base(n.dir)}}
		if change != nil {
			change(c.Import)
		}
	}
}

// imports waits until every image of the disk has one of the results in every namespace, and returns them.
func (n *node) imports(disk string, images int, results ...string) []berth.ImportedImage {
	n.Helper()
	var list []berth.ImportedImage
	n.eventually(fmt.Sprintf("%d images of disk %s to be %v", images, disk, results), func() error {
		status, err := n.berthd.Status(n.Context())
		if err != nil {
			return err
		}
		d, err := status.Disk(disk)
		if err != nil {
			return err
		}
		list = d.Imports
		if d.ImportError != "" || len(list) != images || slices.ContainsFunc(list, func(i berth.ImportedImage) bool { return !slices.Contains(results, i.Result) }) {
			return fmt.Errorf("images are %+v, %s", list, d.ImportError)
		}
		return nil
	})
	return list
}

// knownTo waits until a kubelet has the image: CRI learns of it by an event.
func (n *node) knownTo(c *cri.Client, p pushed, known bool) {
	n.Helper()
	n.eventually(fmt.Sprintf("CRI to know image %s: %t", p.ref, known), func() error {
		img, err := c.Image(n.Context(), p.ref)
		if err == nil && known != (img != nil) {
			err = fmt.Errorf("image is %v", img)
		}
		return err
	})
}

// inContainerd is everything that containerd has in a namespace.
func (n *node) inContainerd(namespace string) []string {
	n.Helper()
	if namespace == "" {
		namespace = filepath.Base(n.dir)
	}
	c, err := n.containerd.Client()
	require.NoError(n, err)
	defer func() { require.NoError(n, c.Close()) }()
	list, err := everything(namespaces.WithNamespace(n.Context(), namespace), c)
	require.NoError(n, err)
	return list
}

func everything(ctx context.Context, c *client.Client) (list []string, err error) {
	images, err := c.ImageService().List(ctx)
	for _, i := range images {
		list = append(list, "image "+i.Name)
	}
	if err != nil {
		return nil, err
	}
	leases, err := c.LeasesService().List(ctx)
	for _, l := range leases {
		list = append(list, "lease "+l.ID)
	}
	if err != nil {
		return nil, err
	}
	err = c.ContentStore().Walk(ctx, func(i content.Info) error {
		list = append(list, "content "+i.Digest.String())
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, c.SnapshotService(berth.PluginName).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		list = append(list, "snapshot "+i.Name)
		return nil
	})
}

// requireNothing in containerd, of either namespace.
func (n *node) requireNothing() {
	n.Helper()
	for _, ns := range []string{criNamespace, ""} {
		require.Empty(n, n.inContainerd(ns), ns)
	}
}

// collectGarbage of containerd, all of it, now.
func (n *node) collectGarbage(namespace string) {
	n.Helper()
	_, err := n.containerd.Ctr(n.Context(), namespace, "content", "prune", "references")
	require.NoError(n, err)
}

// A pod and a container start from the images of a disk that was attached while the registry is switched off: the
// kubelet's question whether the image is there (E-13) is answered with yes, and nothing is pulled. Garbage collection
// leaves the images whole, restarts of everything too, and detaching the disk takes all of it back.
func TestImport(t *testing.T) {
	n := newNode(t)
	n.withImport(func(i *berth.Import) { i.Pinned = true })
	p := n.push("all", n.fiveLayers()...)
	pause := n.push("pause", n.busybox())
	n.pauseImage = pause.ref
	n.attachAtStart("d", n.build("d", p, pause))
	n.registry.SetFault(registry.Off)
	n.start()
	n.imports("d", 4, "registered")
	c := n.cri()
	n.knownTo(c, p, true)
	n.knownTo(c, pause, true)
	img, err := c.Image(t.Context(), p.ref)
	require.NoError(t, err)
	require.True(t, img.GetPinned(), "pinned")
	require.Equal(t, []string{p.ref}, img.GetRepoTags())
	digest, err := p.img.Digest()
	require.NoError(t, err)
	require.Equal(t, []string{strings.TrimSuffix(p.ref, ":1") + "@" + digest.String()}, img.GetRepoDigests())
	config, err := p.img.ConfigName()
	require.NoError(t, err)
	require.Equal(t, config.String(), img.GetId())
	for _, name := range []string{img.GetId(), img.GetRepoDigests()[0]} {
		same, err := c.Image(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, img, same, name)
	}
	images, err := c.Images(t.Context())
	require.NoError(t, err)
	require.Len(t, images, 2)

	status := n.status()
	require.Zero(t, berth.Sum(status.Hits)+berth.Sum(status.Misses), "nothing was pulled")
	require.EqualValues(t, 5, status.Adopted)

	n.collectGarbage(criNamespace)
	n.collectGarbage("")
	pod := n.pod(c, "pod", img.GetId(), 0)
	out, err := pod.Exec(t.Context(), "cat", "/s/top", "/a/setuid")
	require.NoError(t, err)
	require.Equal(t, "content of topagain", out)
	require.Equal(t, "content of top", n.run(p, "ctr", "cat", "/s/top"))
	_, err = n.berthd.CLI(t.Context(), "detach", "d")
	require.ErrorContains(t, err, "snapshots use its layers")
	require.Len(t, n.imports("d", 4, "registered"), 4, "a disk that containers use keeps its images")
	require.NoError(t, pod.Remove(t.Context()))

	before := [][]string{n.inContainerd(criNamespace), n.inContainerd("")}
	n.reboot()
	n.imports("d", 4, "registered")
	c = n.cri()
	n.knownTo(c, p, true)
	n.collectGarbage(criNamespace)
	require.Equal(t, before, [][]string{n.inContainerd(criNamespace), n.inContainerd("")})
	require.Equal(t, "content of top", n.run(p, "ctr2", "cat", "/s/top"))
	require.Zero(t, n.fetched(p))

	require.Equal(t, "d: detached\n", n.cli("detach", "d"))
	n.knownTo(c, p, false)
	n.requireNothing()
}

// An image that somebody has removed, by CRI as the kubelet does or by ctr, stays away until the disk is attached anew.
func TestImportRemoved(t *testing.T) {
	n := newNode(t)
	n.withImport(nil)
	p := n.push("all", n.fiveLayers()...)
	disk := n.build("d", p)
	n.start()
	n.cli("attach", disk)
	n.imports("d", 2, "registered")
	c := n.cri()
	n.knownTo(c, p, true)
	img, err := c.Image(t.Context(), p.ref)
	require.NoError(t, err)
	require.False(t, img.GetPinned())
	require.NoError(t, c.RemoveImage(t.Context(), img.GetId()))
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	require.NoError(t, n.berthd.Kill())
	n.startBerthd()
	n.imports("d", 2, "removed")
	n.knownTo(c, p, false)
	require.Equal(t, "d: detached\n", n.cli("detach", "d"))
	n.eventually("marks of the disk to go", func() error {
		if left := slices.Concat(n.inContainerd(criNamespace), n.inContainerd("")); len(left) > 0 {
			return fmt.Errorf("there is still %v", left)
		}
		return nil
	})

	n.cli("attach", disk)
	n.imports("d", 2, "registered")
	n.knownTo(c, p, true)
	require.Equal(t, "d: detached\n", n.cli("detach", "d"))
	n.requireNothing()
}

// A name that somebody else has registered is left alone, when the disk comes and when it goes; so is a name that
// somebody moves to another image while the disk is there. Patterns limit which images are registered at all.
func TestImportLeavesOthers(t *testing.T) {
	n := newNode(t)
	n.withImport(func(i *berth.Import) { i.Images = []string{"*/mine:*", "*/theirs:*", "*/moved:*"} })
	mine, theirs, moved, other := n.push("mine", n.busybox()), n.push("theirs", small("old")), n.push("moved", n.busybox(), small("old")), n.push("other", n.busybox())
	disk := n.build("d", mine, theirs, moved, other)
	n.start()
	theirs = n.push("theirs", small("new"))
	n.pull(theirs)
	before := n.target(theirs)
	n.cli("attach", disk)
	list := n.imports("d", 8, "registered", "left", "refused")
	results := map[string]string{}
	for _, i := range list {
		if i.Namespace != criNamespace {
			results[i.Reference] = i.Result
		}
	}
	require.Equal(t, map[string]string{mine.ref: "registered", theirs.ref: "left", moved.ref: "registered", other.ref: "refused"}, results)
	require.Contains(t, n.cli("status"), "did not register, and it stays")
	require.Equal(t, before, n.target(theirs))

	moved = n.push("moved", n.busybox(), small("newer"))
	n.pull(moved)
	_, err := n.berthd.CLI(t.Context(), "detach", "d")
	require.ErrorContains(t, err, "snapshots use its layers", "images that were pulled rest on the disk")
	require.Equal(t, "content of newer", n.run(moved, "moved", "cat", "/s/newer"))
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", moved.ref))
	require.Equal(t, "d: detached\n", n.cli("detach", "d"))
	require.Equal(t, before, n.target(theirs))
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", theirs.ref))
	n.requireNothing()
}

// target of an image's record.
func (n *node) target(p pushed) string {
	n.Helper()
	c, err := n.containerd.Client()
	require.NoError(n, err)
	defer func() { require.NoError(n, c.Close()) }()
	img, err := c.ImageService().Get(namespaces.WithNamespace(n.Context(), filepath.Base(n.dir)), p.ref)
	require.NoError(n, err)
	return img.Target.Digest.String()
}

// containerd may be away when a disk comes and when it goes: what is to be done is done when it is back, also by
// another berthd.
func TestImportWithoutContainerd(t *testing.T) {
	n := newNode(t)
	n.withImport(nil)
	p := n.push("all", n.fiveLayers()...)
	disk := n.build("d", p)
	n.start()
	n.registry.SetFault(registry.Off)
	require.NoError(t, n.containerd.Stop())
	n.cli("attach", disk)
	n.eventually("the status to say what is missing", func() error {
		d, err := n.status().Disk("d")
		if err == nil && !strings.Contains(d.ImportError, "containerd") {
			err = fmt.Errorf("status of images is %q", d.ImportError)
		}
		return err
	})
	require.NoError(t, n.berthd.Kill())
	n.startBerthd()
	require.NoError(t, n.containerd.Start(t.Context()))
	n.imports("d", 2, "registered")
	require.Equal(t, "content of top", n.run(p, "ctr", "cat", "/s/top"))

	require.NoError(t, n.containerd.Stop())
	_, err := n.berthd.CLI(t.Context(), "detach", "d")
	require.ErrorContains(t, err, "containerd, which may have images of the disk, does not answer")
	n.cli("detach", "d", "--drain")
	require.NoError(t, n.berthd.Kill())
	n.startBerthd()
	require.NoError(t, n.containerd.Start(t.Context()))
	n.eventually("the disk to leave", func() error {
		if d, err := n.status().Disk("d"); err == nil {
			return fmt.Errorf("disk is %s", d.State)
		}
		return nil
	})
	n.requireNothing()
}

// A disk that nothing uses but the images that were registered goes when its time is over, and they with it. A
// container keeps it.
func TestImportIdle(t *testing.T) {
	n := newNode(t)
	n.withImport(nil)
	n.idle = 500 * time.Millisecond
	p := n.push("all", n.fiveLayers()...)
	disk := n.build("d", p)
	n.start()
	n.cli("attach", disk, "--keep")
	n.imports("d", 2, "registered")
	n.runDetached(p, "running")
	n.cli("attach", disk) // not kept any more
	out, err := n.containerd.Exec(t.Context(), "", "running", "cat", "/s/top")
	require.NoError(t, err)
	require.Equal(t, "content of top", out)
	require.NoError(t, n.berthd.Kill())
	n.startBerthd()
	n.imports("d", 2, "registered")
	require.NoError(t, n.containerd.RemoveContainer(t.Context(), "", "running"))
	n.eventually("the disk to leave", func() error {
		if d, err := n.status().Disk("d"); err == nil {
			return fmt.Errorf("disk is %s", d.State)
		}
		return nil
	})
	n.requireNothing()
}

// Images of two disks that share layers: containerd has one snapshot of those, on one disk. That disk can be detached,
// and the image of the other goes over to its own layers.
func TestImportSharedLayers(t *testing.T) {
	n := newNode(t)
	n.withImport(nil)
	n.idle = time.Hour // not kept
	one, two := n.push("one", n.busybox(), small("one")), n.push("two", n.busybox(), small("two"))
	first, second := n.build("first", one), n.build("second", two, one)
	n.start()
	n.registry.SetFault(registry.Off)
	n.cli("attach", first)
	n.imports("first", 2, "registered")
	n.cli("attach", second)
	n.imports("second", 4, "registered", "left")
	require.Equal(t, "first: detached\n", n.cli("detach", "first"))
	n.imports("second", 4, "registered")
	require.Equal(t, "content of one", n.run(one, "one", "cat", "/s/one"))
	require.Equal(t, "content of two", n.run(two, "two", "cat", "/s/two"))
	require.Equal(t, "second: detached\n", n.cli("detach", "second"))
	n.requireNothing()
}
