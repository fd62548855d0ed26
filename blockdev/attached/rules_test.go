package attached

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	guuid "github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/sysblock"
	"berth.dev/berth/blockdev/sysblock/sysblocktest"
	"berth.dev/berth/layerdisk"
)

const (
	cinderID    = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
	cinderFirst = "0a1b2c3d-4e5f-6071-8" // its first 20 bytes
)

func virtio(name, serial string) sysblocktest.Disk {
	return sysblocktest.Disk{Name: name, Attributes: map[string]string{"serial": serial}}
}

func nvme(name, model, serial string) sysblocktest.Disk {
	return sysblocktest.Disk{Name: name, Major: 259, Attributes: map[string]string{
		"device/model": model + "        \n", "device/serial": serial + "      \n", "nsid": "1\n"}}
}

func scsi(name, address, vendor, model string, more map[string]string) sysblocktest.Disk {
	attributes := map[string]string{"device/vendor": vendor + "  \n", "device/model": model + "  \n"}
	for k, v := range more {
		attributes[k] = v
	}
	return sysblocktest.Disk{Name: name, Major: 8, SCSI: address, Attributes: attributes}
}

func plain(name string, links ...string) sysblocktest.Disk {
	return sysblocktest.Disk{Name: name, Links: links}
}

func page(code byte, payload string) string {
	return string(append([]byte{0, code, 0, byte(len(payload))}, payload...))
}

func t10(text string) string { return page(0x83, "\x02\x01\x00"+string(rune(len(text)))+text) }

// named is the same of a vendor-specific name (SPC-5, 7.7.6.3), which stands there alone.
func named(text string) string { return page(0x83, "\x02\x00\x00"+string(rune(len(text)))+text) }

// system is what every node has besides: it must never be taken for a volume.
func system(tr *sysblocktest.Tree) {
	tr.Add(sysblocktest.Disk{Name: "vda", Attributes: map[string]string{"serial": "system"}, Partitions: []string{"vda1"}})
	tr.Mount(2, "rw")
	tr.Add(sysblocktest.Disk{Name: "sr0", Major: 11})
	tr.Add(sysblocktest.Disk{Name: "zram0", Major: 252})
	tr.Add(sysblocktest.Disk{Name: "loop0", Major: 7, Attributes: map[string]string{"loop/backing_file": "/var/other.img"}})
}

// TestRules is the table of docs/drivers.md: per cloud and bus, what the node shows, and what is to be found.
func TestRules(t *testing.T) {
	amazon, alibaba := "Amazon Elastic Block Store", "Alibaba Cloud Elastic Block Storage"
	for name, tc := range map[string]struct {
		id    string
		disks []sysblocktest.Disk
		want  string
	}{
		"aws nvme": {"aws:vol-0123456789abcdef0", []sysblocktest.Disk{
			nvme("nvme0n1", amazon, "vol0fedcba9876543210"), nvme("nvme1n1", amazon, "vol0123456789abcdef0")}, "nvme1n1"},
		"aws instance store with a like serial": {"aws:vol-0123456789abcdef0", []sysblocktest.Disk{
			nvme("nvme1n1", "Amazon EC2 NVMe Instance Storage", "vol0123456789abcdef0")}, ""},
		"aws by-id": {"aws:vol-0123456789abcdef0", []sysblocktest.Disk{plain("nvme0n1"),
			plain("nvme1n1", "disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0")}, "nvme1n1"},
		"aws xen":              {"name:xvdf", []sysblocktest.Disk{plain("xvda1"), plain("xvdf")}, "xvdf"},
		"aws xen, by its link": {"name:xvdba", []sysblocktest.Disk{plain("nvme2n1", "xvdba")}, "nvme2n1"},
		"aws xen, asked as sd": {"name:sdf", []sysblocktest.Disk{plain("xvdf"), plain("xvdg")}, "xvdf"},
		"gcp scsi": {"gcp:layers-1", []sysblocktest.Disk{
			scsi("sdb", "0:0:2:0", "Google", "PersistentDisk", map[string]string{"device/vpd_pg83": t10("Google  PersistentDisk  layers-10")}),
			scsi("sdc", "0:0:3:0", "Google", "PersistentDisk", map[string]string{"device/vpd_pg83": t10("Google  PersistentDisk  layers-1")})}, "sdc"},
		"gcp scsi, vendor-specific": {"gcp:layers-1", []sysblocktest.Disk{
			scsi("sdb", "0:0:2:0", "Other", "PersistentDisk", map[string]string{"device/vpd_pg83": named("layers-1")}),
			scsi("sdc", "0:0:3:0", "Google", "PersistentDisk", map[string]string{"device/vpd_pg83": named("layers-10")}),
			scsi("sdd", "0:0:4:0", "Google", "PersistentDisk", map[string]string{"device/vpd_pg83": named("layers-1")})}, "sdd"},
		"gcp by-id":      {"gcp:layers-1", []sysblocktest.Disk{plain("nvme0n2", "disk/by-id/google-layers-1")}, "nvme0n2"},
		"gcp by-id scsi": {"gcp:layers-1", []sysblocktest.Disk{plain("sdb", "disk/by-id/scsi-0Google_PersistentDisk_layers-1")}, "sdb"},
		"azure scsi": {"azure:3", []sysblocktest.Disk{
			scsi("sdc", "1:0:0:2", "Msft", "Virtual Disk", nil), scsi("sdd", "1:0:0:3", "Msft", "Virtual Disk", nil),
			scsi("sde", "2:0:0:3", "Other", "Disk", nil)}, "sdd"},
		"azure link":      {"azure:3", []sysblocktest.Disk{plain("sdc", "disk/azure/scsi1/lun3"), plain("sdd", "disk/azure/scsi1/lun4")}, "sdc"},
		"azure data link": {"azure:3", []sysblocktest.Disk{plain("nvme0n5", "disk/azure/data/by-lun/3")}, "nvme0n5"},
		"azure nvme": {"azure:3", []sysblocktest.Disk{
			{Name: "nvme0n3", Attributes: map[string]string{"device/model": "MSFT NVMe Accelerator v1.0", "nsid": "3"}},
			{Name: "nvme0n5", Attributes: map[string]string{"device/model": "MSFT NVMe Accelerator v1.0", "nsid": "5"}}}, "nvme0n5"},
		"alibaba virtio": {"alibaba:d-bp1abcdefghij", []sysblocktest.Disk{virtio("vdb", "bp1abcdefghij"), virtio("vdc", "bp1abcdefghik")}, "vdb"},
		"alibaba nvme": {"alibaba:d-bp1abcdefghij", []sysblocktest.Disk{
			nvme("nvme0n1", alibaba, "bp1abcdefghik"), nvme("nvme1n1", alibaba, "bp1abcdefghij")}, "nvme1n1"},
		"alibaba by-id": {"alibaba:d-bp1abcdefghij", []sysblocktest.Disk{plain("vdb", "disk/by-id/virtio-bp1abcdefghij")}, "vdb"},
		"alibaba by-id nvme": {"alibaba:d-bp1abcdefghij", []sysblocktest.Disk{
			plain("nvme1n1", "disk/by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_bp1abcdefghij")}, "nvme1n1"},
		"huawei virtio":     {"huawei:" + cinderID, []sysblocktest.Disk{virtio("vdb", cinderFirst), virtio("vdc", "0a1b2c3d-4e5f-6071-9")}, "vdb"},
		"huawei whole id":   {"huawei:" + cinderID, []sysblocktest.Disk{virtio("vdb", cinderFirst), virtio("vdc", cinderID)}, "vdc"},
		"huawei scsi":       {"huawei:" + cinderID, []sysblocktest.Disk{plain("sdb", "disk/by-id/scsi-0QEMU_QEMU_HARDDISK_"+cinderFirst)}, "sdb"},
		"huawei scsi-3":     {"huawei:" + cinderID, []sysblocktest.Disk{plain("sdb", "disk/by-id/scsi-30a1b2c3d4e5f60718293a4b5c6d7e8f9")}, "sdb"},
		"huawei wwn":        {"wwn:6888603000012345fa16e11b2c3d4e5f", []sysblocktest.Disk{scsi("sdb", "2:0:0:1", "HUAWEI", "VBD", map[string]string{"device/wwid": "naa.6888603000012345fa16e11b2c3d4e5f\n"})}, "sdb"},
		"wwn with 0x, link": {"wwn:0x5000c500a1b2c3d4", []sysblocktest.Disk{plain("sdb", "disk/by-id/wwn-0x5000c500a1b2c3d4")}, "sdb"},
		"openstack virtio":  {"openstack:" + cinderID, []sysblocktest.Disk{virtio("vdb", cinderFirst)}, "vdb"},
		"openstack scsi": {"openstack:" + cinderID, []sysblocktest.Disk{
			scsi("sda", "2:0:0:1", "QEMU", "QEMU HARDDISK", map[string]string{"device/vpd_pg80": page(0x80, cinderID)})}, "sda"},
		"openstack scsi, t10": {"openstack:" + cinderID, []sysblocktest.Disk{
			scsi("sda", "2:0:0:1", "QEMU", "QEMU HARDDISK", map[string]string{"device/vpd_pg83": t10("QEMU    QEMU HARDDISK   " + cinderFirst)})}, "sda"},
		"openstack scsi, vendor-specific": {"openstack:" + cinderID, []sysblocktest.Disk{
			scsi("sda", "2:0:0:1", "QEMU", "QEMU HARDDISK", map[string]string{"device/vpd_pg83": named(cinderFirst)}), virtio("vdb", cinderID)}, "vdb"},
		"openstack by-id, whole": {"openstack:" + cinderID, []sysblocktest.Disk{plain("vdb", "disk/by-id/virtio-"+cinderID), plain("vdc", "disk/by-id/virtio-"+cinderFirst)}, "vdb"},
		"openstack wwn":          {"openstack:" + cinderID, []sysblocktest.Disk{plain("sdb", "disk/by-id/wwn-0x0a1b2c3d4e5f60718293a4b5c6d7e8f9")}, "sdb"},
		"tencent":                {"tencent:disk-abcd1234", []sysblocktest.Disk{virtio("vdb", "disk-abcd1234")}, "vdb"},
		"tencent by-id":          {"tencent:disk-abcd1234", []sysblocktest.Disk{plain("vdb", "disk/by-id/virtio-disk-abcd1234")}, "vdb"},
		"volcengine":             {"volcengine:vol-3tzg6y5im0t2", []sysblocktest.Disk{virtio("vdb", "3tzg6y5im0t2")}, "vdb"},
		"volcengine by-id":       {"volcengine:vol-3tzg6y5im0t2", []sysblocktest.Disk{plain("vdb", "disk/by-id/virtio-vol-3tzg6y5im0t2")}, "vdb"},
		"rbd":                    {"rbd:images/base@v1", []sysblocktest.Disk{plain("rbd1"), plain("rbd0")}, "rbd0"},
		"rbd link":               {"rbd:images/other", []sysblocktest.Disk{plain("rbd7", "rbd/images/other")}, "rbd7"},
		"serial":                 {"serial:S4EVNX0R123456", []sysblocktest.Disk{nvme("nvme0n1", "Samsung", "S4EVNX0R123456")}, "nvme0n1"},
		"by-id":                  {"by-id:usb-SanDisk_Ultra_1234-0:0", []sysblocktest.Disk{plain("sdb", "disk/by-id/usb-SanDisk_Ultra_1234-0:0")}, "sdb"},
		"scsi address":           {"scsi:3:0:0:7", []sysblocktest.Disk{scsi("sdb", "3:0:0:6", "V", "M", nil), scsi("sdc", "3:0:0:7", "V", "M", nil)}, "sdc"},
		"loop":                   {"loop:/srv/base.img", []sysblocktest.Disk{{Name: "loop5", Major: 7, Attributes: map[string]string{"loop/backing_file": "/srv/base.img"}}}, "loop5"},
		"none":                   {"alibaba:d-bp1zzz", []sysblocktest.Disk{virtio("vdb", "bp1abcdefghij")}, ""},
		"no serial at all":       {"serial:x", []sysblocktest.Disk{plain("vdb")}, ""},
		"link to nothing":        {"by-id:gone", nil, ""},
		"no medium":              {"alibaba:d-a", []sysblocktest.Disk{{Name: "vdb", Sectors: -1, Attributes: map[string]string{"serial": "a"}}}, ""},
		"hidden path": {"serial:s", []sysblocktest.Disk{
			{Name: "nvme0c0n1", Attributes: map[string]string{"device/serial": "s", "hidden": "1"}}, nvme("nvme0n1", "m", "s")}, "nvme0n1"},
		"multipath": {"wwn:5000c500a1b2c3d4", []sysblocktest.Disk{
			{Name: "sda", SCSI: "1:0:0:1", Holders: []string{"dm-3"}, Attributes: map[string]string{"device/wwid": "naa.5000c500a1b2c3d4"}},
			{Name: "sdb", SCSI: "2:0:0:1", Holders: []string{"dm-3"}, Attributes: map[string]string{"device/wwid": "naa.5000c500a1b2c3d4"}},
			{Name: "dm-3", Attributes: map[string]string{"dm/uuid": "mpath-35000c500a1b2c3d4"}}}, "dm-3"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := sysblocktest.New(t)
			system(tr)
			tr.Link("disk/by-id/gone", "../../vdz")
			tr.File("bus/rbd/devices/0/pool", "images\n")
			tr.File("bus/rbd/devices/0/name", "base\n")
			tr.File("bus/rbd/devices/0/current_snap", "v1\n")
			for _, d := range tc.disks {
				tr.Add(d)
			}
			got, err := find(t, newScanner(Options{Roots: tr.Roots}), tc.id)
			if tc.want == "" {
				require.ErrorIs(t, err, errAbsent)
				require.True(t, errdefs.IsNotFound(err))
				return
			}
			require.NoError(t, err)
			require.Equal(t, []string{tc.want}, got)
		})
	}
}

func find(t *testing.T, s *scanner, id string) ([]string, error) {
	t.Helper()
	return findDisk(t, s, id, "")
}

// findDisk finds the volume that holds the disk of an index.
func findDisk(t *testing.T, s *scanner, id string, want digest.Digest) ([]string, error) {
	t.Helper()
	v, err := parseVolumeID(id)
	require.NoError(t, err)
	devices, err := s.find(t.Context(), v, want)
	var names []string
	for _, d := range devices {
		names = append(names, d.Name)
	}
	return names, err
}

// TestEveryRuleIsTested keeps the table above complete.
func TestEveryRuleIsTested(t *testing.T) {
	source, err := os.ReadFile("rules_test.go")
	require.NoError(t, err)
	for _, scheme := range Schemes() {
		if scheme != schemeIndex {
			require.Contains(t, string(source), `{"`+scheme+":", scheme)
		}
	}
}

func TestVolumeIDs(t *testing.T) {
	for _, id := range []string{"", ":", "vol-0123", "nowhere:x", "aws:", "aws:vol-xyz", "aws:vol-01234567/../x", "azure:-1", "azure:03", "azure:x",
		"gcp:UPPER", "huawei:" + cinderFirst, "by-id:../../etc/passwd", "by-id:..", "name:../sda", "name:loop0", "rbd:pool", "rbd:../etc",
		"rbd:a/..", "scsi:1:2:3", "loop:relative", "wwn:xyz", "serial:a/b", "serial:a\x00b", "index:sha256:12", "index:", "serial:" + strings.Repeat("x", 5000)} {
		_, err := parseVolumeID(id)
		require.ErrorIs(t, err, blockdev.ErrInvalid, id)
	}
	v, err := parseVolumeID("index:" + digest.FromString("x").String())
	require.NoError(t, err)
	require.Equal(t, schemeIndex, v.scheme)
}

// header of a made-up disk.
func header(name string) layerdisk.Header {
	return layerdisk.Header{UUID: guuid.NewSHA1(guuid.NameSpaceURL, []byte(name)).String(), IndexDigest: digest.FromString(name)}
}

// holding makes the scanner read headers from a table; devices that are not in it hold nothing of ours.
func holding(s *scanner, disks map[string]string) map[string]int {
	reads := make(map[string]int)
	s.headers.read = func(d sysblock.Device) (layerdisk.Header, error) {
		s.headers.mu.Lock()
		defer s.headers.mu.Unlock()
		reads[d.Name]++
		name, ok := disks[d.Name]
		switch {
		case !ok:
			return layerdisk.Header{}, layerdisk.ErrNotLayerDisk
		case name == "corrupt":
			return layerdisk.Header{}, layerdisk.ErrCorrupt
		case name == "version":
			return layerdisk.Header{}, layerdisk.ErrVersion
		case name == "broken":
			return layerdisk.Header{}, errors.New("input/output error")
		}
		return header(name), nil
	}
	return reads
}

// TestSamePrefix is two volumes whose serials are the same, because only 20 bytes fit.
func TestSamePrefix(t *testing.T) {
	tr := sysblocktest.New(t)
	system(tr)
	tr.Add(virtio("vdb", cinderFirst))
	tr.Add(virtio("vdc", cinderFirst))
	tr.Link("disk/by-id/virtio-"+cinderFirst, "../../vdb")
	s := newScanner(Options{Roots: tr.Roots})
	holding(s, map[string]string{"vdc": "layers"})
	got, err := find(t, s, "openstack:"+cinderID)
	require.NoError(t, err)
	require.Equal(t, []string{"vdc"}, got, "what is on them decides, not the link")

	s = newScanner(Options{Roots: tr.Roots})
	holding(s, map[string]string{"vdb": "one", "vdc": "two"})
	_, err = find(t, s, "openstack:"+cinderID)
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.ErrorContains(t, err, "vdb, vdc fit equally well and hold 2 layer disks")
	got, err = find(t, s, VolumeID(header("two").IndexDigest))
	require.NoError(t, err)
	require.Equal(t, []string{"vdc"}, got)

	for name, device := range map[string]string{"one": "vdb", "two": "vdc"} {
		got, err = findDisk(t, s, "openstack:"+cinderID, header(name).IndexDigest)
		require.NoError(t, err)
		require.Equal(t, []string{device}, got, "who knows what is on the volume gets it")
	}
	_, err = findDisk(t, s, "openstack:"+cinderID, header("three").IndexDigest)
	require.ErrorIs(t, err, errAbsent, "its device is still to come, these are other volumes'")
	require.ErrorContains(t, err, "vdb, vdc fits by the first 20 bytes of the serial, and does not hold the disk")

	s = newScanner(Options{Roots: tr.Roots})
	holding(s, map[string]string{"vdb": "same", "vdc": "same"})
	got, err = find(t, s, "openstack:"+cinderID)
	require.NoError(t, err)
	require.Equal(t, []string{"vdb", "vdc"}, got, "copies of one disk are equally good")

	holding(s, nil)
	s.headers.forget("")
	_, err = find(t, s, "openstack:"+cinderID)
	require.ErrorContains(t, err, "hold 0 layer disks")
}

// TestPrefixOfAnother is a volume whose device is not there yet, while that of another one with the same cut serial is.
func TestPrefixOfAnother(t *testing.T) {
	tr := sysblocktest.New(t)
	tr.Add(virtio("vdb", cinderFirst))
	s := newScanner(Options{Roots: tr.Roots})
	holding(s, map[string]string{"vdb": "one", "vdc": "two"})
	_, err := findDisk(t, s, "openstack:"+cinderID, header("two").IndexDigest)
	require.ErrorIs(t, err, errAbsent)
	tr.Add(virtio("vdc", cinderFirst))
	got, err := findDisk(t, s, "openstack:"+cinderID, header("two").IndexDigest)
	require.NoError(t, err)
	require.Equal(t, []string{"vdc"}, got)
	// A serial that is whole is no other's, whatever is on it: whoever uses it will see.
	got, err = findDisk(t, s, "serial:"+cinderFirst, header("three").IndexDigest)
	require.ErrorContains(t, err, "fit equally well", "%v", got)
}

func TestInUse(t *testing.T) {
	tr := sysblocktest.New(t)
	system(tr)
	for _, id := range []string{"serial:system"} {
		_, err := find(t, newScanner(Options{Roots: tr.Roots}), id)
		require.ErrorIs(t, err, blockdev.ErrInUse, "a partition is mounted")
		require.ErrorContains(t, err, "vda fits")
	}
	tr.Add(sysblocktest.Disk{Name: "vdb", Attributes: map[string]string{"serial": "lvm"}, Holders: []string{"dm-0"}})
	tr.Add(sysblocktest.Disk{Name: "dm-0", Attributes: map[string]string{"dm/uuid": "LVM-x"}})
	_, err := find(t, newScanner(Options{Roots: tr.Roots}), "serial:lvm")
	require.ErrorIs(t, err, blockdev.ErrInUse)
	// Azure: the system disk has the LUN too, but is in use.
	d := scsi("sda", "0:0:0:0", "Msft", "Virtual Disk", nil)
	d.Partitions, d.Major = []string{"sda1"}, 254
	tr.Add(d)
	tr.Mount(9, "rw")
	tr.Add(scsi("sdb", "1:0:0:0", "Msft", "Virtual Disk", nil))
	got, err := find(t, newScanner(Options{Roots: tr.Roots}), "azure:0")
	require.NoError(t, err)
	require.Equal(t, []string{"sdb"}, got)
}
