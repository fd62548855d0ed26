//go:build vm

package vm

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/test/harness/registry"
	"berth.dev/berth/test/harness/vm"
)

// Sixteen disks of three kinds come at once, the image lies over four of them, and all go at once.
func TestManyDisks(t *testing.T) {
	n := newNode(t)
	const count = 16
	images, disks := make([]pushed, count), make([]layerDisk, count)
	for i := range count {
		name := fmt.Sprintf("i%d", i)
		if i < 4 {
			images[i] = n.other(name)
		} else {
			images[i] = n.push(name, small(name))
		}
		disks[i] = n.build(name, images[i])
	}
	n.start(discover)
	plugged := make([]*vm.Disk, count)
	at := func(do func(i int) error) {
		t.Helper()
		var all errgroup.Group
		for i := range count {
			all.Go(func() error { return do(i) })
		}
		require.NoError(t, all.Wait())
	}
	at(func(i int) (err error) {
		plugged[i], err = n.guest.Plug(t.Context(), vm.DiskSpec{Kind: vm.Kind(i % 3), File: disks[i].file, Serial: fmt.Sprintf("serial%d", i), LUN: i})
		return err
	})
	for _, d := range disks {
		n.serves(d.found())
	}
	for i := range 4 {
		n.pull(images[i])
		require.Zero(t, n.fetched(images[i]))
		require.Equal(t, fmt.Sprintf("content of i%d", i), n.run(images[i], "c", "cat", fmt.Sprintf("/s/i%d", i)))
		n.removeImage(images[i])
	}
	at(func(i int) error { return n.guest.Pull(t.Context(), plugged[i]) })
	for _, d := range disks {
		n.gone(d.found())
	}
	n.nothingLeft()
}

// After a reset the kernel finds the disks in another order, so each has the device that another had. berthd finds them
// by what is on them before it answers containerd, and images and containers of the run before work without a registry.
func TestReboot(t *testing.T) {
	n := newNode(t)
	one, two := n.app("one"), n.other("two")
	disks := []layerDisk{n.build("one", one), n.build("two", two)}
	n.start(discover)
	device := make(map[string]string)
	for i, d := range disks {
		n.plug(d, vm.DiskSpec{Kind: vm.Virtio, Serial: fmt.Sprintf("disk%d", i), Port: 9 - i})
		device[d.found()] = n.serves(d.found()).GetDevice()
	}
	n.pull(one)
	n.runDetached(one, "c")
	n.shell("sync") // a container's own directory is as durable as with stock overlay, which syncs nothing
	n.pull(two)     // and layers on disks are durable at once
	require.Zero(t, n.fetched(one)+n.fetched(two))
	n.registry.SetFault(registry.Off)

	require.NoError(t, n.guest.Reboot(t.Context()))
	n.startBerthd("")
	for i, d := range disks {
		got := n.disk(d.found())
		require.True(t, got.GetServing(), "served from the first answer on: %v", got)
		require.Equal(t, device[disks[1-i].found()], got.GetDevice(), "the names are swapped")
		require.EqualValues(t, 2, got.GetHolders())
	}
	n.startContainerd()
	require.Equal(t, "content of one", n.run(one, "new", "cat", "/s/one"))
	require.Equal(t, "content of two", n.run(two, "new", "cat", "/s/two"))
	n.detached("ctr", "tasks", "start", "--detach", "c")
	out, err := n.exec("c", "cat", "/s/one")
	require.NoError(t, err)
	require.Equal(t, "content of one", out)
	n.removeContainer("c")
	n.removeImage(one)
	n.removeImage(two)
	for _, d := range disks {
		n.detach(d.found())
	}
	n.nothingLeft()
}
