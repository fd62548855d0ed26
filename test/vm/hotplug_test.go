//go:build vm

package vm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/vm"
)

// discover has berthd use whatever layer disk there is.
const discover = "[discover]\nenabled = true\n"

// A disk is plugged in, found, proved, mounted, used by a pull and a container, given back and pulled out, as each kind
// of device that clouds have (M-1 to M-4).
func TestHotPlug(t *testing.T) {
	n := newNode(t)
	p := n.app("app")
	d := n.build("d", p)
	n.start(discover)
	t.Log("kernel", n.shell("uname -r"))
	for _, spec := range []vm.DiskSpec{
		{Kind: vm.Virtio, Serial: "0a1b2c3d-4e5f-6071-8"},
		{Kind: vm.NVMe, Serial: "vol0123456789abcdef0"},
		{Kind: vm.SCSI, Vendor: "Google", Product: "PersistentDisk", DeviceID: "layers-1", LUN: 3},
	} {
		ok := t.Run(spec.Kind.String(), func(t *testing.T) {
			n := *n
			n.T = t
			n.registry.Reset()
			plugged := n.plug(d, spec)
			disk := n.serves(d.found())
			require.Equal(t, "attached", disk.GetDriver())
			require.Equal(t, d.IndexDigest.String(), disk.GetIndexDigest())
			require.Equal(t, "1\n", n.shell("blockdev --getro "+disk.GetDevice()))
			n.pull(p)
			require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
			require.Equal(t, "content of app", n.run(p, "c", "cat", "/s/app"))

			n.removeImage(p)
			n.detach(d.found())
			require.Equal(t, "0\n", n.shell("blockdev --getro "+disk.GetDevice()), "the device is given back as it was")
			n.nothingLeft()
			n.pullOut(plugged)
		})
		if !ok {
			return // the disk is still there
		}
	}
}
