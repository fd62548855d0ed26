//go:build vm

package vm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/vm"
)

// The same disk is there twice, as over two paths or as a copy: when the one in use is torn out, the other takes over.
func TestSecondPathTakesOver(t *testing.T) {
	n := newNode(t)
	p, later := n.app("app"), n.other("later")
	d := n.build("d", p, later)
	n.start(discover)
	plugged := map[string]*vm.Disk{
		"/dev/vda":     n.plug(d, vm.DiskSpec{Kind: vm.Virtio, Serial: "one"}),
		"/dev/nvme2n1": n.plug(d, vm.DiskSpec{Kind: vm.NVMe, Serial: "two"}),
	}
	first := n.serves(d.found()).GetDevice()
	require.Contains(t, plugged, first)
	n.pull(p)
	n.runDetached(p, "c")
	n.pullOut(plugged[first])
	n.eventually("the other device to serve", func() error {
		if disk := n.disk(d.found()); !disk.GetServing() || disk.GetDevice() == first {
			return fmt.Errorf("it is %v", disk)
		}
		return nil
	})
	require.Equal(t, "content of app", n.run(p, "new", "cat", "/s/app"))
	n.pull(later)
	require.Zero(t, n.fetched(p)+n.fetched(later))
	n.removeContainer("c")
	n.removeImage(p)
	n.removeImage(later)
	n.detach(d.found())
	n.nothingLeft()
}

// A disk that comes and goes faster than it can be attached leaves nothing behind, and serves when it stays.
func TestRestlessDisk(t *testing.T) {
	n := newNode(t)
	p := n.app("app")
	d := n.build("d", p)
	n.start(discover)
	for i := range 12 {
		// So slow that it goes in the midst of being read, every other time.
		spec := vm.DiskSpec{Kind: vm.Kind(i % 3), Serial: fmt.Sprintf("turn%d", i), LUN: i, BytesPerSecond: int64(1-i%2) * 65536}
		n.pullOut(n.plug(d, spec))
	}
	n.gone(d.found())
	n.eventually("what came and went to be forgotten", func() error {
		if left := n.shell("find /var/lib/berth/attached /var/lib/berth/d -mindepth 1; ls /sys/block | grep -v -e nvme[01] -e loop || :"); left != "" {
			return errors.New(left)
		}
		return nil
	})
	n.nothingLeft()
	n.plug(d, vm.DiskSpec{Kind: vm.Virtio, Serial: "stays"})
	n.serves(d.found())
	n.pull(p)
	require.Zero(t, n.fetched(p))
	require.Equal(t, "content of app", n.run(p, "c", "cat", "/s/app"))
	n.removeImage(p)
	n.detach(d.found())
	n.nothingLeft()
}
