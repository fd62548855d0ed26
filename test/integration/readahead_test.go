//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/mounts"
	"berth.dev/berth/test/harness/pagecache"
	"berth.dev/berth/test/harness/slowdisk"
	"berth.dev/berth/test/harness/slowdisk/lazy"
)

// slow serves the disk as one whose every first read is slow.
func (n *node) slow(disk string) *slowdisk.Disk { return n.slowAs(disk, lazy.Typical()) }

func (n *node) slowAs(disk string, speed lazy.Speed) *slowdisk.Disk {
	n.Helper()
	s, err := slowdisk.Start(n.Context(), slowdisk.Config{Dir: filepath.Join(n.dir, "s"), File: disk, Speed: speed})
	require.NoError(n, err)
	n.slowDisk = true
	n.Cleanup(func() {
		require.NoError(n, mounts.UnmountBelow(filepath.Join(n.dir, "b")))
		require.NoError(n, loop.DetachBelow(n.dir))
		require.NoError(n, s.Close())
	})
	return s
}

// M-4: a disk that does not answer holds up a pull for the configured time and no longer: the registry serves. It
// serves the next pull, once it has answered.
func TestSlowDiskLosesTheRace(t *testing.T) {
	n := newNode(t)
	p := n.push("app", n.fiveLayers()...)
	app := n.build("app", p)
	slow := n.slow(app)
	n.withCatalog(300*time.Millisecond, 0)
	n.publish("app", app, byPath(slow.Path()))
	n.start()
	require.NoError(t, slow.Hold(t.Context()))
	n.pull(p) // would never end if it waited for the disk
	require.Equal(t, len(p.blobs), n.fetched(p))
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	require.Contains(t, n.explain(p), "not attached in time, the pull went on without it")
	n.requireSameTree(p)

	require.NoError(t, slow.Release(t.Context()))
	n.diskServes()
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	n.registry.Reset()
	n.pull(p)
	require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, "content of top", n.run(p, "d", "cat", "/s/top"))
	n.requireSameTree(p)
}

// M-4: a disk that brings less than a pull would is not used, and the pull says why.
func TestTooSlowDiskIsNotUsed(t *testing.T) {
	n := newNode(t)
	p := n.largeImage("large")
	app := n.build("app", p)
	speed := lazy.Typical()
	speed.RestoreRate = 2_000_000
	slow := n.slowAs(app, speed)
	n.withCatalog(soon, 0)
	n.publish("app", app, byPath(slow.Path()))
	n.start()
	n.pull(p)
	require.Equal(t, len(p.blobs), n.fetched(p))
	require.Empty(t, n.attached())
	require.Contains(t, n.explain(p), "stage.min_rate")
	require.Equal(t, "content of top-of-large", n.run(p, "c", "cat", "/s/top-of-large"))
}

func (n *node) diskServes() {
	n.Helper()
	n.eventually("the disk to serve", func() error {
		for _, d := range n.status().Disks {
			if d.Serving {
				return nil
			}
		}
		return fmt.Errorf("it does not: %+v", n.status().Disks)
	})
}

// A disk that is there in the middle of a pull serves the layers that containerd has not unpacked yet, and the image is
// whole.
func TestDiskComesDuringPull(t *testing.T) {
	n := newNode(t)
	p := n.push("app", n.fiveLayers()...)
	app := n.build("app", p)
	slow := n.slow(app)
	n.withCatalog(300*time.Millisecond, 0)
	n.publish("app", app, byPath(slow.Path()))
	n.start()
	require.NoError(t, slow.Hold(t.Context()))
	n.registry.Hold(p.blobs...)
	pulled := make(chan error, 1)
	go func() { pulled <- n.tryPull(p, "") }()
	n.eventually("the pull to go on without the disk", func() error {
		if s := n.status(); berth.Sum(s.Misses) == 0 {
			return fmt.Errorf("the lowest layer still waits")
		}
		return nil
	})
	require.NoError(t, slow.Release(t.Context()))
	n.diskServes()
	n.registry.Resume()
	require.NoError(t, <-pulled)
	status := n.status()
	require.Equal(t, len(p.blobs)-1, berth.Sum(status.Hits), "all but the lowest: %v, %v", status.Hits, status.Misses)
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	n.requireSameTree(p)
}

const largeBytes = 24 << 20

// largeImage has a file that is worth reading ahead.
func (n *node) largeImage(name string) pushed {
	large := image.Layer{Entries: []image.Entry{image.Dir("data"), image.File("data/large", strings.Repeat(name+"0123456789abcdef", largeBytes/16)[:largeBytes])}}
	return n.push(name, n.busybox(), large, small("top-of-"+name))
}

// list is an access list of parts of the large file.
func (n *node) list(p pushed, disk string, parts ...accesslist.Range) {
	n.Helper()
	f, err := os.Open(disk)
	require.NoError(n, err)
	defer f.Close()
	_, id, err := layerdisk.ReadIndex(f)
	require.NoError(n, err)
	config, err := p.img.ConfigFile()
	require.NoError(n, err)
	l := accesslist.List{Image: p.ref, Platform: "linux/amd64", Recorded: time.Unix(1_700_000_000, 0), Disk: id.IndexDigest,
		Metadata: []accesslist.Range{{Offset: 0, Length: 4096}}}
	for _, r := range parts {
		l.Files = append(l.Files, accesslist.FileRange{DiffID: digest.Digest(config.RootFS.DiffIDs[1].String()), Path: "data/large", Offset: r.Offset, Length: r.Length})
	}
	data, err := l.Encode()
	require.NoError(n, err)
	dir := filepath.Join(n.dir, "b", "root", "access-lists")
	require.NoError(n, os.MkdirAll(dir, 0o700))
	require.NoError(n, os.WriteFile(filepath.Join(dir, digest.FromString(p.ref).Encoded()), data, 0o600))
}

// cachedPages of a part of the large file on the first disk.
func (n *node) cachedPages(offset, length int64) int {
	n.Helper()
	pages, err := pagecache.Pages(filepath.Join(n.status().Disks[0].MountPoint, "l/1/data/large"), offset, length)
	require.NoError(n, err)
	return pages
}

// readAhead waits for a replay of the image that has ended, and gives all there were.
func (n *node) readAhead(p pushed, count int) (all []berth.ReadAhead) {
	n.Helper()
	n.eventually("the image to be read ahead", func() error {
		all = nil
		for _, h := range n.status().ReadAhead {
			if h.Image == p.ref && h.State != "running" && h.State != "waiting" {
				all = append(all, h)
			}
		}
		if len(all) < count {
			return fmt.Errorf("it is not: %+v", n.status().ReadAhead)
		}
		return nil
	})
	return all
}

// A pull that a disk serves has the page cache filled as the list says, before any container runs; after a restart of
// the node's daemon the start of a container does.
func TestStartIsReadAhead(t *testing.T) {
	n := newNode(t)
	p := n.largeImage("large")
	disk := n.build("d", p)
	n.attachAtStart("d", disk)
	n.list(p, disk, accesslist.Range{Offset: 9 << 20, Length: 3 << 20}, accesslist.Range{Offset: 1 << 20, Length: 4096})
	n.start()
	require.Zero(t, n.cachedPages(0, largeBytes))
	n.pull(p)
	got := n.readAhead(p, 1)
	require.Equal(t, []berth.ReadAhead{{Image: p.ref, Disk: "d", Listed: true, State: "done", TotalBytes: 3<<20 + 8192, Bytes: 3<<20 + 8192, Rate: got[0].Rate}}, got)
	require.Positive(t, got[0].Rate)
	require.Equal(t, 3<<20/4096, n.cachedPages(9<<20, 3<<20))
	require.Equal(t, 3<<20/4096+1, n.cachedPages(0, largeBytes), "nothing else of the file")

	require.NoError(t, n.berthd.Kill())
	n.startBerthd()
	require.Empty(t, n.status().ReadAhead)
	n.run(p, "c", "true")
	require.Equal(t, "done", n.readAhead(p, 1)[0].State)
}

// Without a list it is the metadata of the file system.
func TestMetadataIsReadAheadWithoutList(t *testing.T) {
	n := newNode(t)
	p := n.largeImage("large")
	n.attachAtStart("d", n.build("d", p))
	n.start()
	n.pull(p)
	got := n.readAhead(p, 1)
	require.Len(t, got, 1)
	require.Equal(t, "done", got[0].State)
	require.False(t, got[0].Listed)
	require.Equal(t, got[0].TotalBytes, got[0].Bytes)
	require.Positive(t, got[0].Bytes)
	require.Less(t, got[0].Bytes, berth.Count(1<<20), "that of some hundred files")
	require.Zero(t, n.cachedPages(0, largeBytes))
}

// What reads ahead keeps no disk from being detached, and a container that runs meanwhile reads what it wants.
func TestDetachWhileReadingAhead(t *testing.T) {
	n := newNode(t)
	p := n.largeImage("large")
	disk := n.build("d", p)
	n.attachAtStart("d", disk)
	n.list(p, disk, accesslist.Range{Length: largeBytes})
	n.configure = func(c *berth.Config) { c.ReadAheadRate = 1 << 20 } // it would take half a minute
	n.start()
	n.pull(p)
	n.eventually("reading ahead", func() error {
		if h := n.status().ReadAhead; len(h) != 1 || h[0].State != "running" || h[0].Bytes == 0 {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	require.Equal(t, fmt.Sprint(largeBytes), strings.TrimSpace(n.run(p, "c", "sh", "-c", "cat /data/large | wc -c")))
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	n.eventually("nothing to be held", func() error {
		if s := n.status(); s.Adopted != 0 {
			return fmt.Errorf("%d snapshots are adopted", s.Adopted)
		}
		return nil
	})
	_, err := n.berthd.CLI(t.Context(), "detach", "d")
	require.NoError(t, err)
	require.Equal(t, "stopped", n.readAhead(p, 1)[0].State)
	found, err := loop.Below(n.dir)
	require.NoError(t, err)
	require.Empty(t, found)
}

// A disk that fails while it is read ahead fails nothing else: the next pull goes by the registry.
func TestDiskFailsWhileReadingAhead(t *testing.T) {
	n := newNode(t)
	p := n.largeImage("large")
	disk := n.build("d", p)
	slow := n.slow(disk)
	n.attachAtStart("d", slow.Path())
	n.list(p, disk, accesslist.Range{Length: largeBytes})
	n.configure = func(c *berth.Config) { c.ReadAheadRate = 4 << 20 }
	n.start()
	n.pull(p)
	require.Zero(t, n.fetched(p))
	require.NoError(t, slow.Fail(t.Context()))
	got := n.readAhead(p, 1)[0]
	require.Contains(t, []string{"failed", "stopped"}, got.State, "by its own read, or because the disk was found to be broken before")
	require.NoError(t, slow.Mend(t.Context()))
	n.diskServes()
	require.Equal(t, "content of top-of-large", n.run(p, "c", "cat", "/s/top-of-large"))
}
