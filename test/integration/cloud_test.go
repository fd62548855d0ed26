//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/process"
)

// cloud is two nodes with the disks of one storage, through a CSI driver that is a process of its own: one makes image
// snapshots and publishes them, the other pulls.
type cloud struct {
	builder, puller *node
	driver          *process.Process
	args            []string
	storage         string
}

// newCloud starts the CSI driver; the nodes are to be started.
func newCloud(t *testing.T, flags ...string) *cloud {
	a := newNode(t)
	b := a.another()
	c := &cloud{builder: a, puller: b, storage: filepath.Join(a.dir, "storage")}
	c.args = append([]string{filepath.Join(bin, "berth"), "csi-loop", "--directory", c.storage, "--node-id", "a", "--socket", c.socket(a),
		"--node", "b=" + c.socket(b)}, flags...)
	c.startDriver()
	t.Cleanup(func() { require.NoError(t, c.driver.Stop(soon)) })
	for _, n := range []*node{a, b} {
		n.csi = map[string]string{"cloud": c.socket(n)}
	}
	a.configure = func(cfg *berth.Config) {
		cfg.ImageSnapshots = fmt.Sprintf("driver = \"cloud\"\npublish_directory = %q", a.catalogDir())
	}
	b.configure = func(cfg *berth.Config) { cfg.Catalog, cfg.IdleTimeout = a.catalogDir(), time.Second }
	return c
}

func (c *cloud) socket(n *node) string { return filepath.Join(n.dir, "csi.sock") }

func (c *cloud) startDriver() {
	var err error
	c.driver, err = process.Start(c.builder.Context(), process.Spec{Name: "csi-loop", Args: c.args, LogDir: c.builder.dir})
	require.NoError(c.builder, err)
	c.builder.eventually("the CSI driver to listen", func() error {
		for _, n := range []*node{c.builder, c.puller} {
			if _, err := os.Stat(c.socket(n)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *cloud) killDriver() {
	require.NoError(c.builder, c.driver.Signal(unix.SIGKILL))
	<-c.driver.Done()
	for _, n := range []*node{c.builder, c.puller} {
		require.NoError(c.builder, os.Remove(c.socket(n)))
	}
}

func (c *cloud) has(kind string) []string {
	entries, err := os.ReadDir(filepath.Join(c.storage, kind))
	require.NoError(c.builder, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// eventuallyHas so many volumes and volume snapshots.
func (c *cloud) eventuallyHas(volumes, snapshots int) {
	c.builder.Helper()
	c.builder.eventually(fmt.Sprintf("%d volumes and %d volume snapshots in the storage", volumes, snapshots), func() error {
		if v, s := c.has("volumes"), c.has("snapshots"); len(v) != volumes || len(s) != snapshots {
			return errors.New("there are " + strings.Join(append(v, s...), " "))
		}
		return nil
	})
}

// published waits until the catalog has so many image snapshots.
func (c *cloud) published(want int) {
	c.builder.Helper()
	c.builder.eventually(fmt.Sprintf("%d image snapshots in the catalog", want), func() error {
		found, err := filepath.Glob(filepath.Join(c.builder.catalogDir(), "*.json"))
		if err == nil && len(found) != want {
			err = fmt.Errorf("there are %d", len(found))
		}
		return err
	})
}

func (c *cloud) create(name string, p pushed, more ...string) {
	c.builder.Helper()
	c.builder.cli(append(append([]string{"image-snapshot", "create", name, "--image", p.ref, "--wait"}, more...), c.builder.registryFlags(p.ref)...)...)
	c.builder.registry.Reset()
}

// pullFromDisk pulls until nothing is fetched: a node looks at a catalog now and then, and after a failure waits before
// it tries again.
func (n *node) pullFromDisk(p pushed) {
	n.Helper()
	n.eventually("a pull to fetch nothing", func() error {
		n.registry.Reset()
		n.pull(p)
		fetched := n.fetched(p)
		if fetched == 0 {
			return nil
		}
		require.NoError(n, n.containerd.RemoveImage(n.Context(), "", p.ref))
		return fmt.Errorf("%d blobs were fetched: %s", fetched, n.explain(p))
	})
}

// C-50, E-12: what a user does on one node serves the pulls of another, with the disks of their storage: create,
// publish, pull, run, detach, delete, and nothing is left.
func TestImageSnapshotOfACloud(t *testing.T) {
	c := newCloud(t)
	a, b := c.builder, c.puller
	p := a.push("app", a.fiveLayers()...)
	a.start()
	b.start()
	c.create("nightly", p, "--parameter", "eipID=eip-1")
	v, err := a.snapshot("nightly")
	require.NoError(t, err)
	require.Equal(t, "cloud", v.Status.Driver)
	require.Contains(t, a.cli("image-snapshot", "events", "nightly"), "ParametersIgnored")
	c.eventuallyHas(0, 1)
	c.published(1)

	b.pullFromDisk(p)
	require.Equal(t, []string{"nightly"}, b.attached())
	require.Equal(t, "content of top", b.run(p, "c", "cat", "/s/top"))
	b.requireSameTree(p)
	require.Len(t, c.has("volumes"), 1, "a volume for the node")
	a.pullFromDisk(p)
	c.eventuallyHas(2, 1)
	b.runDetached(p, "running")

	// A directory that is not configured any more loses what was published in it; the image snapshot stays.
	a.berthd.Configure(func(cfg *berth.Config) { cfg.ImageSnapshots = "driver = \"cloud\"" })
	require.NoError(t, a.berthd.Stop())
	require.NoError(t, a.berthd.Start(t.Context()))
	c.published(0)
	require.Len(t, c.has("snapshots"), 1)

	// Deleting it takes nothing from those who use it.
	require.Contains(t, a.cli("image-snapshot", "delete", "nightly", "--wait"), "nightly: deleted")
	c.eventuallyHas(2, 0)
	c.published(0)
	require.Equal(t, "content of top", b.run(p, "d", "cat", "/s/top"))
	require.NoError(t, b.containerd.RemoveContainer(t.Context(), "", "running"))
	for _, n := range []*node{a, b} {
		require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	}
	c.eventuallyHas(0, 0)
	require.Empty(t, c.has("attachments"))
}

// Layers of an image snapshot in the cloud are taken over by the next (E-22), whatever the driver lacks to list and to
// look up; and an update moves nodes to the new content.
func TestReuseInACloud(t *testing.T) {
	for _, without := range []string{"", "list", "list,get", "publish,stage,readonly,list,get"} {
		t.Run("without "+without, func(t *testing.T) {
			var flags []string
			if without != "" {
				flags = []string{"--without", without}
			}
			c := newCloud(t, flags...)
			a := c.builder
			base := a.push("base", a.busybox(), small("low"))
			app := a.push("app", a.busybox(), small("low"), small("top"))
			a.start()
			c.create("base", base)
			c.create("app", app)
			require.Contains(t, a.cli("image-snapshot", "events", "app"), "LayersReused")
			c.eventuallyHas(0, 2)
			a.pullFromDisk(app)
			require.Equal(t, "content of top", a.run(app, "c", "cat", "/s/top"))
			a.requireSameTree(app)
			require.NoError(t, a.containerd.RemoveImage(t.Context(), "", app.ref))
			a.cli("image-snapshot", "delete", "base", "--wait")
			a.cli("image-snapshot", "delete", "app", "--wait")
			c.eventuallyHas(0, 0)
			require.Empty(t, c.has("attachments"))
		})
	}
}

// Neither the CSI driver's nor berthd's death, in the midst of a build, while the volume snapshot is not ready, in the
// midst of a pull and of a deletion, loses or leaves anything.
func TestCloudSurvivesKills(t *testing.T) {
	c := newCloud(t, "--snapshot-time", "5s")
	a, b := c.builder, c.puller
	p := a.push("app", a.fiveLayers()...)
	a.start()
	b.start()

	a.registry.Hold()
	a.cli(append([]string{"image-snapshot", "create", "nightly", "--image", p.ref, "--reuse-layers=false"}, a.registryFlags(p.ref)...)...)
	a.eventually("the build to ask the registry", func() error {
		if len(c.has("attachments")) != 1 || a.registry.Requests() == 0 {
			return errors.New("it has not begun")
		}
		return nil
	})
	c.killDriver()
	require.NoError(t, a.berthd.Kill())
	a.registry.Resume()
	require.NoError(t, a.berthd.Start(t.Context()), "without its driver")
	c.startDriver()
	a.eventually("a volume snapshot to be made", func() error {
		if len(c.has("snapshots")) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	require.NoError(t, a.berthd.Kill())
	c.killDriver()
	c.startDriver()
	require.NoError(t, a.berthd.Start(t.Context()))
	require.Equal(t, 2, a.awaitSnapshot("nightly", "AVAILABLE").Status.Builds, "what was built once is not built again")
	c.eventuallyHas(0, 1)
	c.published(1)

	// Without its driver the node pulls, later it attaches.
	c.killDriver()
	a.registry.Reset()
	b.pull(p)
	require.Equal(t, len(p.blobs), b.fetched(p))
	require.NoError(t, b.containerd.RemoveImage(t.Context(), "", p.ref))
	c.startDriver()
	b.pullFromDisk(p)
	b.runDetached(p, "running")
	c.killDriver()
	require.NoError(t, b.berthd.Kill())
	require.NoError(t, b.berthd.Start(t.Context()))
	require.Equal(t, "content of top", b.run(p, "c", "cat", "/s/top"), "what is mounted needs no driver")

	// A deletion that cannot be done is done later.
	a.cli("image-snapshot", "delete", "nightly")
	require.NoError(t, a.berthd.Kill())
	require.NoError(t, a.berthd.Start(t.Context()))
	require.Len(t, c.has("snapshots"), 1)
	c.startDriver()
	c.eventuallyHas(1, 0)
	c.published(0)
	require.NoError(t, b.containerd.RemoveContainer(t.Context(), "", "running"))
	require.NoError(t, b.containerd.RemoveImage(t.Context(), "", p.ref))
	c.eventuallyHas(0, 0)
	require.Empty(t, c.has("attachments"))
}

// E-23 where volume snapshots take their time: the built volume serves the one node that attaches it first, others
// pull, and when the volume snapshot is ready all have volumes of their own and the built one goes.
func TestFlashInACloud(t *testing.T) {
	c := newCloud(t, "--snapshot-time", "14s")
	a, b := c.builder, c.puller
	p := a.push("app", a.busybox(), small("top"))
	a.start()
	b.start()
	c.create("nightly", p, "--flash")
	require.Contains(t, a.cli("image-snapshot", "events", "nightly"), "FlashReady")
	c.published(1)
	b.pullFromDisk(p)
	built := len(c.has("volumes"))
	require.Equal(t, "content of top", b.run(p, "c", "cat", "/s/top"))
	a.pull(p)
	fetched := a.fetched(p)
	v, err := a.snapshot("nightly")
	require.NoError(t, err)
	if v.Status.VolumeSnapshotID == "" { // else the machine was too slow to see anything of it
		require.Equal(t, 1, built, "no volume but the built one")
		require.Positive(t, fetched, "the volume is attached elsewhere, so this node pulls")
	}
	require.NoError(t, a.containerd.RemoveImage(t.Context(), "", p.ref))

	a.eventually("the volume snapshot to take over", func() error {
		v, err := a.snapshot("nightly")
		if err == nil && v.Status.VolumeSnapshotID == "" {
			err = errors.New("it is still the volume")
		}
		return err
	})
	a.pullFromDisk(p)
	require.Equal(t, "content of top", b.run(p, "d", "cat", "/s/top"), "who uses the built volume keeps it")
	require.NoError(t, b.containerd.RemoveImage(t.Context(), "", p.ref))
	c.eventuallyHas(1, 1)
	require.NoError(t, a.containerd.RemoveImage(t.Context(), "", p.ref))
	a.cli("image-snapshot", "delete", "nightly", "--wait")
	c.eventuallyHas(0, 0)
	require.Empty(t, c.has("attachments"))
}

// A CSI driver without volume snapshots is refused before anything is made, and the message says what to do.
func TestCloudWithoutVolumeSnapshots(t *testing.T) {
	c := newCloud(t, "--without", "snapshots")
	a := c.builder
	p := a.push("app", small("top"))
	a.start()
	_, err := a.berthd.CLI(t.Context(), append([]string{"image-snapshot", "create", "nightly", "--image", p.ref, "--wait"}, a.registryFlags(p.ref)...)...)
	require.ErrorContains(t, err, "StorageFailed")
	require.ErrorContains(t, err, `image_snapshots.driver "cloud" is not fit`)
	require.ErrorContains(t, err, "CREATE_DELETE_SNAPSHOT")
	require.Zero(t, a.registry.Requests())
	require.Empty(t, c.has("volumes"))
	a.cli("image-snapshot", "delete", "nightly", "--wait")
}
