//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/slowdisk"
	"berth.dev/berth/test/harness/slowdisk/lazy"
)

// stalling makes a disk of a file that can be told not to answer any more. It is not below the node's directory, which
// is cleared of mounts before the disk ends.
func (n *node) stalling(file string) *slowdisk.Disk {
	n.Helper()
	dir, err := os.MkdirTemp("", "bts")
	require.NoError(n, err)
	d, err := slowdisk.Start(n.Context(), slowdisk.Config{Dir: dir, File: file, Speed: lazy.Typical()})
	require.NoError(n, err)
	n.Cleanup(func() {
		require.NoError(n, loop.DetachBelow(dir))
		require.NoError(n, d.Close())
		require.NoError(n, leak.WaitNone(context.Background(), dir))
		require.NoError(n, os.RemoveAll(dir))
	})
	return d
}

// answerInTheEnd lets everything go on, whatever became of the test: it is called after start.
func (n *node) answerInTheEnd(d *slowdisk.Disk) {
	n.Cleanup(func() { require.NoError(n, d.Release(context.Background())) })
}

// pullSoon is a pull that must not hang.
func (n *node) pullSoon(p pushed) {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), soon)
	defer cancel()
	require.NoError(n, n.containerd.Pull(ctx, p.ref, containerd.PullOptions{Snapshotter: berth.PluginName, PlainHTTP: n.registry.PlainHTTP()}))
}

// cliSoon runs a command that must not hang.
func (n *node) cliSoon(args ...string) error {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), soon)
	defer cancel()
	_, err := n.berthd.CLI(ctx, args...)
	require.NoError(n, ctx.Err(), "%v hangs", args)
	return err
}

// A disk stops to answer while it serves, for good as far as anybody can know: pulls get from other disks and from the
// registry what it has, all other work goes on, detaching says what is the matter, and berthd can be stopped and
// started. When the disk answers again, everything that was to go is gone.
func TestDiskStalls(t *testing.T) {
	n := newNode(t)
	p, q, later := n.push("all", n.fiveLayers()...), n.push("other", n.busybox(), small("other")), n.push("later", n.busybox(), small("later"))
	slow := n.stalling(n.build("d", p))
	n.attachAtStart("d", slow.Path())
	n.attachAtStart("e", n.build("e", q))
	n.start()
	n.answerInTheEnd(slow)

	require.NoError(t, slow.Hold(t.Context()))
	n.pullSoon(p)
	require.Equal(t, len(p.blobs)-1, n.fetched(p), "all but what the other disk has too")
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	d, err := n.status().Disk("d")
	require.NoError(t, err)
	require.False(t, d.Serving)
	require.Contains(t, d.LastError, "has not answered")
	n.pullSoon(q)
	require.Zero(t, n.fetched(q))

	err = n.cliSoon("detach", "d")
	require.ErrorContains(t, err, "reads of it are not answered")
	d, err = n.status().Disk("d")
	require.NoError(t, err)
	require.Equal(t, "detaching", d.State)
	require.Contains(t, d.LastError, "reads of it are not answered")

	// The kernel does not let a process end that waits for a device; the next one can do without.
	old := n.berthd.Process()
	require.NoError(t, old.Signal(unix.SIGTERM))
	n.disks = n.disks[1:]
	n.berthd.Configure(func(c *berth.Config) { c.Disks = n.disks })
	n.startBerthd()
	n.pullSoon(later)
	require.Equal(t, 1, n.fetched(later), "the other disk serves on")

	require.NoError(t, slow.Release(t.Context()))
	<-old.Done()
	n.eventually("the disk to be gone", func() error {
		if _, err := n.status().Disk("d"); err == nil {
			return fmt.Errorf("it is %+v", n.status().Disks)
		}
		devices, err := loop.Below(slow.Path())
		if err == nil && len(devices) > 0 {
			err = fmt.Errorf("loop devices %v", devices)
		}
		return err
	})
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.berthd.Root() + "/d"))
	require.NoError(t, err)
	require.Len(t, mounts, 1, "that of the other disk")
}

// A disk that does not answer while it is attached holds nobody up but those who wait for it, who are told in time.
// When it answers, it serves.
func TestDiskStallsWhileItIsAttached(t *testing.T) {
	n := newNode(t)
	p, q, later := n.push("all", n.fiveLayers()...), n.push("other", n.busybox(), small("other")), n.push("later", n.fiveLayers()[:4]...)
	slow := n.stalling(n.build("d", p))
	n.attachAtStart("e", n.build("e", q))
	n.start()
	n.answerInTheEnd(slow)
	require.NoError(t, slow.Hold(t.Context()))
	attached := make(chan error, 1)
	go func() {
		_, err := n.berthd.CLI(t.Context(), "attach", slow.Path(), "--name", "d")
		attached <- err
	}()
	n.eventually("the disk to be on its way", func() error {
		d, err := n.status().Disk("d")
		if err == nil && d.State != "attaching" {
			err = fmt.Errorf("it is %s", d.State)
		}
		return err
	})
	n.pullSoon(p)
	require.Equal(t, len(p.blobs)-1, n.fetched(p), "all but what the other disk has too")
	n.pullSoon(q)
	require.Zero(t, n.fetched(q))
	require.NoError(t, slow.Release(t.Context()))
	require.NoError(t, <-attached)
	n.pullSoon(later)
	d, err := n.status().Disk("d")
	require.NoError(t, err)
	require.True(t, d.Serving)
}
