//go:build vm

package vm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/vm"
)

// volume is one named as its cloud does, and the device that shows it.
type volume struct {
	id   string
	spec vm.DiskSpec
	// linkOnly: udev's link is the only thing that tells.
	linkOnly bool
}

// volumes by rules of docs/drivers.md that QEMU's devices can show as their clouds do. rbd, loop and NVMe disks of
// Azure and Google cannot be had that way.
func volumes() []volume {
	return []volume{
		{"openstack:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", vm.DiskSpec{Kind: vm.Virtio, Serial: "0a1b2c3d-4e5f-6071-8"}, false},
		{"huawei:1b2c3d4e-5f60-7182-93a4-b5c6d7e8f90a", vm.DiskSpec{Kind: vm.SCSI, LUN: 1, Serial: "1b2c3d4e-5f60-7182-93a4-b5c6d7e8f90a"}, false},
		{"aws:vol-0123456789abcdef0", vm.DiskSpec{Kind: vm.NVMe, Serial: "vol0123456789abcdef0"}, true},
		{"gcp:layers-1", vm.DiskSpec{Kind: vm.SCSI, LUN: 2, Vendor: "Google", Product: "PersistentDisk", DeviceID: "layers-1"}, false},
		{"azure:3", vm.DiskSpec{Kind: vm.SCSI, LUN: 3, Vendor: "Msft", Product: "Virtual Disk"}, false},
		{"alibaba:d-bp1abcdefghij", vm.DiskSpec{Kind: vm.Virtio, Serial: "bp1abcdefghij"}, false},
		{"tencent:disk-abcd1234", vm.DiskSpec{Kind: vm.Virtio, Serial: "disk-abcd1234"}, false},
		{"volcengine:vol-3tzg6y5im0t2", vm.DiskSpec{Kind: vm.Virtio, Serial: "3tzg6y5im0t2"}, false},
		{"wwn:5000c500a1b2c3d4", vm.DiskSpec{Kind: vm.SCSI, LUN: 4, WWN: 0x5000c500a1b2c3d4}, false},
		{"serial:S4EVNX0R123456", vm.DiskSpec{Kind: vm.NVMe, Serial: "S4EVNX0R123456"}, false},
		{"by-id:scsi-0QEMU_QEMU_HARDDISK_drive-7", vm.DiskSpec{Kind: vm.SCSI, LUN: 7, DeviceID: "drive-7"}, true},
		{"scsi:0:0:0:9", vm.DiskSpec{Kind: vm.SCSI, LUN: 9, Serial: "nine"}, false},
	}
}

// Volumes are found by their clouds' names, whether they are there when they are wanted or come later. Each is another
// disk, all are there at once, so one that is taken for another is refused by its digest.
func TestNamedVolumes(t *testing.T) {
	n := newNode(t)
	all := volumes()
	disks := make([]layerDisk, len(all))
	var config strings.Builder
	for i, v := range all {
		name := fmt.Sprintf("d%d", i)
		disks[i] = n.build(name, n.push(name, small(name)))
		if i%2 == 0 {
			fmt.Fprintf(&config, "[[disk]]\nname = %q\ndriver = \"attached\"\nvolume = %q\nexpect = %q\n", name, v.id, disks[i].IndexDigest)
		}
	}
	// The rule of AWS' own images; QEMU's model is not Amazon's, so that the serial alone does not do.
	require.NoError(t, n.guest.WriteFile(t.Context(), "/etc/udev/rules.d/70-ec2-nvme-devices.rules",
		`KERNEL=="nvme[0-9]*n[0-9]*", ENV{DEVTYPE}=="disk", ATTRS{serial}=="vol?*", SYMLINK+="disk/by-id/nvme-Amazon_Elastic_Block_Store_$attr{serial}"`+"\n"))
	n.shell("udevadm control --reload")
	n.startBerthd(config.String())
	require.False(t, n.disk("d0").GetServing())
	for i, v := range all {
		n.plug(disks[i], v.spec)
	}
	for i, v := range all {
		name := fmt.Sprintf("d%d", i)
		if i%2 != 0 {
			n.shell(fmt.Sprintf("berth attach --driver attached --volume %s --name %s --expect %s", v.id, name, disks[i].IndexDigest))
		}
		t.Log(v.id)
		require.Equal(t, disks[i].IndexDigest.String(), n.serves(name).GetIndexDigest())
	}
	for i := range all {
		n.detach(fmt.Sprintf("d%d", i))
	}
	n.nothingLeft()

	// Where no udev makes links, what the devices say of themselves has to do.
	n.shell("udevadm control --exit; rm -r /dev/disk")
	for i, v := range all {
		if v.linkOnly {
			continue
		}
		n.shell(fmt.Sprintf("berth attach --driver attached --volume %s --name d%d --expect %s", v.id, i, disks[i].IndexDigest))
		n.detach(fmt.Sprintf("d%d", i))
	}
	n.nothingLeft()
}

// Two volumes whose serials have the same first 20 characters, which is all that virtio shows: each is found by the
// name and the digest that is expected of it, and neither by the name alone.
func TestSamePrefix(t *testing.T) {
	n := newNode(t)
	one, two := n.build("one", n.push("one", small("one"))), n.build("two", n.push("two", small("two")))
	const prefix, volume, other = "0a1b2c3d-4e5f-6071-8", "openstack:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "openstack:0a1b2c3d-4e5f-6071-8293-ffffffffffff"
	n.startBerthd(fmt.Sprintf("[[disk]]\nname = \"two\"\ndriver = \"attached\"\nvolume = %q\nexpect = %q\n", other, two.IndexDigest))
	n.plug(one, vm.DiskSpec{Kind: vm.Virtio, Serial: prefix})
	n.shell("while [ \"$(cat /sys/block/vda/serial 2>/dev/null)\" != " + prefix + " ]; do sleep 0.1; done")
	n.plug(two, vm.DiskSpec{Kind: vm.Virtio, Serial: prefix})
	require.Equal(t, "/dev/vdb", n.serves("two").GetDevice(), "it waited for its own")
	n.detach("two")
	_, err := n.guest.Run(t.Context(), "berth", "attach", "--driver", "attached", "--volume", volume, "--name", "x")
	require.ErrorContains(t, err, "fit equally well and hold 2 layer disks")
	n.shell(fmt.Sprintf("berth attach --driver attached --volume %s --name one --expect %s", volume, one.IndexDigest))
	require.Equal(t, one.UUID, n.serves("one").GetUuid())
	n.shell(fmt.Sprintf("berth attach --driver attached --volume index:%s --name two", two.IndexDigest))
	require.Equal(t, two.UUID, n.serves("two").GetUuid())
	n.detach("one")
	n.detach("two")
	n.nothingLeft()
}
