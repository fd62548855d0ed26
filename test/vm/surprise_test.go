//go:build vm

package vm

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/vm"
)

// large is a layer with a file of its own that is too large to be in memory by chance.
func large(name string) image.Layer {
	content := make([]byte, 4<<20)
	for i := range content {
		content[i] = byte(i >> 12)
	}
	return image.Layer{Entries: []image.Entry{image.Dir("l"), image.File("l/"+name, string(content))}}
}

// other is an image that shares no layer with those of app.
func (n *node) other(name string) pushed {
	n.Helper()
	busybox, err := image.Busybox()
	require.NoError(n, err)
	busybox.Entries = append(busybox.Entries, image.File("etc/"+name, name))
	return n.push(name, busybox, small(name))
}

// watch gives the events of berthd from now on; the function waits for one.
func (n *node) watch() (next func(controlv1.EventKind) *controlv1.Event) {
	n.Helper()
	ctx, cancel := context.WithCancel(n.Context())
	n.Cleanup(cancel)
	events, err := n.control.WatchEvents(ctx, &controlv1.WatchEventsRequest{})
	require.NoError(n, err)
	return func(kind controlv1.EventKind) *controlv1.Event {
		n.Helper()
		for {
			m, err := events.Recv()
			require.NoError(n, err)
			if m.GetEvent().GetKind() == kind {
				return m.GetEvent()
			}
		}
	}
}

// unreadable are the words of the C library for what reads from a disk that has gone give: EUCLEAN or EIO.
const unreadable = "Structure needs cleaning|Input/output error|I/O error"

// A disk is torn out under a running container. Its reads fail, nothing else does: the disk is taken out of service by
// the kernel's event, other images on it are pulled (M-4), and when it is plugged in again, in another way, it serves
// again. The dead mount goes with its last user.
func TestSurpriseRemoval(t *testing.T) {
	n := newNode(t)
	busybox, err := image.Busybox()
	require.NoError(t, err)
	p := n.push("app", busybox, small("app"), large("data"))
	other, more := n.other("other"), n.other("more")
	d := n.build("d", p, other, more)
	n.start(discover)
	plugged := n.plug(d, vm.DiskSpec{Kind: vm.Virtio, Serial: "a"})
	n.serves(d.found())
	n.pull(p)
	require.Zero(t, n.fetched(p))
	n.runDetached(p, "c")
	// The program is in memory then: without it the container would end at its next step (SIGBUS).
	_, err = n.exec("c", "md5sum", "/bin/busybox")
	require.NoError(t, err)
	next := n.watch()

	n.pullOut(plugged)
	e := next(controlv1.EventKind_EVENT_KIND_DISK_FAILED)
	require.Equal(t, d.found(), e.GetDisk())
	require.Contains(t, e.GetReason(), "snapshots use it")
	disk := n.failed(d.found())
	require.EqualValues(t, 3, disk.GetHolders(), "snapshots of its layers")
	require.NotEmpty(t, n.shell("grep ' /var/lib/berth/d/' /proc/self/mountinfo"), "the kernel still lists the mount")
	out, err := n.exec("c", "md5sum", "/l/data")
	require.Error(t, err)
	require.Regexp(t, unreadable, err.Error()+out)
	_, err = n.tryRun(p, "new", "cat", "/s/app")
	require.ErrorContains(t, err, d.found(), "the error of a new container names the disk")

	// The rest of the node is as without the disk.
	n.pull(other)
	require.Equal(t, len(other.blobs), n.fetched(other))
	require.Equal(t, "content of other", n.run(other, "o", "cat", "/s/other"))

	// Back, as another kind of device.
	plugged = n.plug(d, vm.DiskSpec{Kind: vm.NVMe, Serial: "b"})
	n.serves(d.found())
	require.Equal(t, "content of app", n.run(p, "again", "cat", "/s/app"))
	n.pull(more)
	require.Zero(t, n.fetched(more))
	n.removeContainer("c")
	n.removeImage(p)
	n.removeImage(more)

	// Torn out when nobody uses it, it is forgotten.
	n.pullOut(plugged)
	n.gone(d.found())
	n.nothingLeft()
}

// The dead mount and the disk's record go when the last user goes, if the disk never comes back.
func TestSurpriseRemovalForGood(t *testing.T) {
	n := newNode(t)
	p := n.app("app")
	d := n.build("d", p)
	n.start(discover)
	plugged := n.plug(d, vm.DiskSpec{Kind: vm.NVMe, Serial: "a"})
	n.serves(d.found())
	n.pull(p)
	n.runDetached(p, "c")
	n.pullOut(plugged)
	n.failed(d.found())
	n.removeContainer("c")
	n.removeImage(p)
	n.gone(d.found())
	n.nothingLeft()
	n.pull(p)
	require.Equal(t, len(p.blobs), n.fetched(p))
	require.Equal(t, "content of app", n.run(p, "c2", "cat", "/s/app"))
}

// berthd is killed, and its disk torn out before it is back; it comes up all the same, and the disk serves again when
// it is plugged in.
func TestKilledWhileTheDiskGoes(t *testing.T) {
	n := newNode(t)
	p, other := n.app("app"), n.other("other")
	d := n.build("d", p, other)
	n.start(discover)
	plugged := n.plug(d, vm.DiskSpec{Kind: vm.SCSI, Serial: "a", LUN: 1})
	n.serves(d.found())
	n.pull(p)
	n.runDetached(p, "c")

	n.killBerthd()
	n.pullOut(plugged)
	n.startBerthd("")
	n.failed(d.found())
	n.pull(other)
	require.Equal(t, len(other.blobs), n.fetched(other))
	require.Equal(t, "content of other", n.run(other, "o", "cat", "/s/other"))

	n.plug(d, vm.DiskSpec{Kind: vm.Virtio, Serial: "b"})
	n.serves(d.found())
	require.Equal(t, "content of app", n.run(p, "again", "cat", "/s/app"))
	n.removeContainer("c")
	n.removeImage(p)
	n.detach(d.found())
	n.nothingLeft()
}

// A disk is torn out while an image is pulled that lies on it in part. Whatever becomes of that pull, the next one gets
// all from the registry (M-4), and with the disk back from both.
func TestTornOutInThePull(t *testing.T) {
	n := newNode(t)
	p, more := n.app("app"), n.app("app", "top")
	d := n.build("d", p)
	n.start(discover)
	plugged := n.plug(d, vm.DiskSpec{Kind: vm.NVMe, Serial: "a"})
	n.serves(d.found())
	n.registry.Hold(more.blobs[2])
	ended := make(chan error, 1)
	go func() {
		_, err := n.guest.Run(t.Context(), "ctr", "images", "pull", "--plain-http", "--snapshotter", "berth", more.ref)
		ended <- err
	}()
	n.eventually("two layers to be taken from the disk", func() error {
		if disk := n.disk(d.found()); disk.GetHolders() != 2 {
			return fmt.Errorf("it is %v", disk)
		}
		return nil
	})
	n.pullOut(plugged)
	n.failed(d.found())
	n.registry.Resume()
	t.Log("the pull ended with", <-ended)

	// What the pull took is garbage by now, or is with the image.
	_, err := n.guest.Run(t.Context(), "ctr", "images", "rm", "--sync", more.ref)
	t.Log("removing the image:", err)
	n.eventually("a pull without the disk", func() error {
		_, err := n.guest.Run(t.Context(), "ctr", "images", "pull", "--plain-http", "--snapshotter", "berth", more.ref)
		return err
	})
	require.Equal(t, 3, n.fetched(more))
	require.Equal(t, "content of app", n.run(more, "c", "cat", "/s/app"))
	n.removeImage(more)
	n.gone(d.found())

	plugged = n.plug(d, vm.DiskSpec{Kind: vm.SCSI, Serial: "b"})
	n.serves(d.found())
	n.registry.Reset()
	n.pull(more)
	require.Equal(t, 1, n.fetched(more))
	require.Equal(t, "content of top", n.run(more, "c", "cat", "/s/top"))
	require.Equal(t, "content of app", n.run(more, "c", "cat", "/s/app"))
	n.removeImage(more)
	n.detach(d.found())
	n.nothingLeft()
	n.pullOut(plugged)
}
