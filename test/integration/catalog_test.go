//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/test/harness/berth"
)

// withCatalog has berthd follow a directory of entries.
func (n *node) withCatalog(attachWait time.Duration, maxDisks int) {
	n.configure = func(c *berth.Config) {
		c.Catalog, c.AttachWait, c.MaxDisks = n.catalogDir(), attachWait, maxDisks
	}
}

func (n *node) catalogDir() string { return filepath.Join(n.dir, "catalog") }

// publish a disk as an image snapshot. It is there when this returns, and known to a berthd that starts later.
func (n *node) publish(name, disk string, source catalog.Source) {
	n.Helper()
	n.publishEntry(disk, catalog.Entry{Name: name, ID: name, State: catalog.StateAvailable, Created: time.Now(), Source: source})
}

// publishEntry fills in the index of the disk.
func (n *node) publishEntry(disk string, e catalog.Entry) {
	n.Helper()
	f, err := os.Open(disk)
	require.NoError(n, err)
	defer f.Close()
	e.Index, err = catalog.ReadIndex(f)
	require.NoError(n, err)
	dir, err := directory.Open(n.catalogDir(), 0)
	require.NoError(n, err)
	require.NoError(n, dir.Publish(n.Context(), e))
}

func byPath(disk string) catalog.Source { return catalog.Source{Driver: "loop", VolumeID: disk} }

// volumeSnapshot makes a volume snapshot of a disk in the directory of berthd's embedded driver, which does not run
// yet.
func (n *node) volumeSnapshot(name, disk string) catalog.Source {
	n.Helper()
	content, err := os.ReadFile(disk)
	require.NoError(n, err)
	driver, err := loopdev.Open(filepath.Join(n.dir, "b", "root", "volumes"))
	require.NoError(n, err)
	defer func() { require.NoError(n, driver.Close()) }()
	v, err := driver.CreateVolume(n.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: int64(len(content))})
	require.NoError(n, err)
	device, err := driver.Attach(n.Context(), v.ID, blockdev.AttachOptions{})
	require.NoError(n, err)
	f, err := os.OpenFile(device.Path, os.O_WRONLY, 0)
	require.NoError(n, err)
	_, err = f.Write(content)
	require.NoError(n, err)
	require.NoError(n, f.Sync())
	require.NoError(n, f.Close())
	require.NoError(n, driver.Detach(n.Context(), v.ID))
	s, err := driver.CreateVolumeSnapshot(n.Context(), name+"-snapshot", v.ID)
	require.NoError(n, err)
	require.NoError(n, driver.DeleteVolume(n.Context(), v.ID))
	return catalog.Source{Driver: "loop", VolumeSnapshotID: s.ID}
}

// attached are the image snapshots whose disks are attached; the names of disks begin with theirs.
func (n *node) attached() []string {
	n.Helper()
	var names []string
	for _, d := range n.status().Disks {
		names = append(names, d.Name[:strings.LastIndexByte(d.Name, '-')])
	}
	return names
}

func (n *node) explain(p pushed) string {
	n.Helper()
	args := []string{"explain", "--containerd-address", n.containerd.Socket(), "--namespace", n.containerd.Config().Namespace}
	if n.registry.PlainHTTP() {
		args = append(args, "--plain-http", n.registry.Host())
	}
	out, err := n.berthd.CLI(n.Context(), append(args, p.ref)...)
	require.NoError(n, err)
	return out
}

// M-2: no disk is attached; a pull finds the right one of two, has it attached and fetches nothing.
func TestPullFindsItsDisk(t *testing.T) {
	for _, kind := range []string{"path", "volume snapshot"} {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t)
			p, other := n.push("app", n.fiveLayers()...), n.push("other", n.busybox(), small("other"))
			app, others := n.build("app", p), n.build("other", other)
			n.withCatalog(soon, 0)
			source := byPath(app)
			if kind != "path" {
				source = n.volumeSnapshot("app", app)
			}
			n.publish("app", app, source)
			n.publish("other", others, byPath(others))
			n.start()
			require.Empty(t, n.attached())
			n.pull(p)
			require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
			if legacy() { // tells nothing but the lowest layer at first, which both disks have
				require.Contains(t, n.attached(), "app")
			} else {
				require.Equal(t, []string{"app"}, n.attached())
			}
			require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
			n.requireSameTree(p)
			out := n.explain(p)
			require.Contains(t, out, "of image snapshot app: attached in time")
			require.Contains(t, out, "app (chosen)")
		})
	}
}

// A disk that comes later than a pull waits serves the next one.
func TestLaterPullFindsTheDisk(t *testing.T) {
	n := newNode(t)
	p, next := n.push("app", n.fiveLayers()...), n.push("next", append(n.fiveLayers(), small("more"))...)
	app := n.build("app", p, next)
	n.withCatalog(time.Nanosecond, 0) // no attachment is as fast
	n.publish("app", app, byPath(app))
	n.start()
	n.pull(p)
	require.NotZero(t, n.fetched(p))
	require.Contains(t, n.explain(p), "not attached in time, the pull went on without it")
	n.eventually("the disk to serve", func() error {
		for _, d := range n.status().Disks {
			if d.Serving {
				return nil
			}
		}
		return fmt.Errorf("it does not: %+v", n.status().Disks)
	})
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	n.registry.Reset()
	n.pull(next)
	require.Zero(t, n.fetched(next), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, "content of more", n.run(next, "c", "cat", "/s/more"))
}

// Images of one disk are pulled at once: it is attached once.
func TestPullsAtOnceAttachOnce(t *testing.T) {
	n := newNode(t)
	var images []pushed
	for i := range 5 {
		images = append(images, n.push(fmt.Sprintf("image-%d", i), small(fmt.Sprintf("base-%d", i)), small(fmt.Sprintf("top-%d", i))))
	}
	disk := n.build("all", images...)
	n.withCatalog(soon, 0)
	n.publish("all", disk, byPath(disk))
	n.start()
	var pulls errgroup.Group
	for _, p := range images {
		pulls.Go(func() error { return n.tryPull(p, "") })
	}
	require.NoError(t, pulls.Wait())
	for _, p := range images {
		require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	}
	require.Equal(t, []string{"all"}, n.attached())
	require.Equal(t, 1, strings.Count(n.berthd.Log(), "layer disk is attached for pulls"))
}

// With one disk allowed, one that is not used any more makes room, and one that is used does not.
func TestDiskMakesRoom(t *testing.T) {
	n := newNode(t)
	a, b := n.push("a", small("base-a"), small("a")), n.push("b", small("base-b"), small("b"))
	n.withCatalog(soon, 1)
	for name, p := range map[string]pushed{"a": a, "b": b} {
		disk := n.build(name, p)
		n.publish(name, disk, byPath(disk))
	}
	n.start()
	n.pull(a)
	require.Zero(t, n.fetched(a))
	n.pull(b)
	require.NotZero(t, n.fetched(b), "a is used")
	require.Equal(t, []string{"a"}, n.attached())
	require.Contains(t, n.explain(b), "no-room")

	for _, p := range []pushed{a, b} {
		require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	}
	n.eventually("nothing to be held", func() error {
		if s := n.status(); s.Adopted != 0 {
			return fmt.Errorf("%d snapshots are adopted", s.Adopted)
		}
		return nil
	})
	n.registry.Reset()
	n.pull(b)
	require.Zero(t, n.fetched(b), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, []string{"b"}, n.attached())
}

// The first pull after an image snapshot was published finds it, however seldom the directory is looked at.
func TestPullRightAfterPublishing(t *testing.T) {
	n := newNode(t)
	p, other := n.push("app", n.fiveLayers()...), n.push("other", n.busybox(), small("other"))
	app, others := n.build("app", p), n.build("other", other)
	n.withCatalog(soon, 0)
	follow := n.configure
	n.configure = func(c *berth.Config) {
		follow(c)
		c.CatalogInterval = time.Hour
	}
	n.start()
	for img, disk := range map[*pushed]string{&p: app, &other: others} { // one while there are none, one while there is one
		n.registry.Reset()
		n.publish(filepath.Base(disk), disk, byPath(disk))
		n.pull(*img)
		require.Zero(t, n.fetched(*img), "layer blobs fetched: %v", n.registry.Blobs())
	}
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	n.requireSameTree(p)
}

// Three newer image snapshots of the image whose disks cannot be attached cost the pull no download: the next best is
// tried within the same wait.
func TestPullTriesTheNextBest(t *testing.T) {
	n := newNode(t)
	p := n.push("app", n.fiveLayers()...)
	app := n.build("app", p)
	n.withCatalog(soon, 0)
	made := time.Now().Add(-time.Hour)
	n.publishEntry(app, catalog.Entry{Name: "good", ID: "good", State: catalog.StateAvailable, Created: made, Source: byPath(app)})
	damaged := filepath.Join(n.dir, "damaged")
	require.NoError(t, os.WriteFile(damaged, make([]byte, 1<<20), 0o600))
	for i, source := range []catalog.Source{byPath(filepath.Join(n.dir, "missing")), byPath(damaged), {Driver: "loop", VolumeSnapshotID: "missing"}} {
		name := fmt.Sprintf("bad-%d", i)
		n.publishEntry(app, catalog.Entry{Name: name, ID: name, State: catalog.StateAvailable, Created: made.Add(time.Duration(1+i) * time.Minute), Source: source})
	}
	n.start()
	n.registry.Reset()
	n.pull(p)
	require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, []string{"good"}, n.attached())
	require.Equal(t, 3, strings.Count(n.berthd.Log(), "layer disk that a pull needs is not attached"), "each was tried, once")
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	n.requireSameTree(p)
}

// What was attached for a pull is there again after a crash, and its image snapshot need not be in the catalog any
// more.
func TestDiskOnDemandSurvivesACrash(t *testing.T) {
	n := newNode(t)
	p := n.push("app", n.fiveLayers()...)
	app := n.build("app", p)
	n.withCatalog(soon, 0)
	n.publish("app", app, n.volumeSnapshot("app", app))
	n.start()
	n.pull(p)
	require.NoError(t, n.berthd.Kill())
	require.NoError(t, os.RemoveAll(n.catalogDir()))
	n.startBerthd()
	require.Equal(t, []string{"app"}, n.attached())
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	n.requireSameTree(p)
}

// A damaged entry and one whose disk is another are no harm: the pull goes on.
func TestBadCatalogIsNoHarm(t *testing.T) {
	n := newNode(t)
	p, other := n.push("app", n.fiveLayers()...), n.push("other", small("other"))
	n.withCatalog(soon, 0)
	n.publish("app", n.build("app", p), byPath(n.build("other", other)))
	require.NoError(t, os.WriteFile(filepath.Join(n.catalogDir(), "half.json"), []byte(`{"format":1,"na`), 0o600))
	n.start()
	n.pull(p)
	require.Equal(t, len(p.blobs), n.fetched(p))
	require.Empty(t, n.attached())
	require.Contains(t, n.berthd.Log(), "half.json")
	require.Contains(t, n.explain(p), "another layer disk than expected")
	n.requireSameTree(p)
}
