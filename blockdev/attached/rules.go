package attached

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/sysblock"
)

// rule says how the device of a volume shows on a node of one cloud. The facts were read in the clouds' own CSI drivers
// (2024-10 to 2026-08) and in the udev rules of their images. A rule only finds candidates: what is on a device is
// proved by whoever uses it.
//
// Texts are made of the volume's ID: {id} is all of it, {id20} its first 20 bytes, which is all that a virtio-blk
// serial holds (VIRTIO_BLK_ID_BYTES), {bare} is without the prefix that strip names, {nodash} without dashes.
type rule struct {
	// valid is what an ID looks like. nil is any that fits a file name.
	valid *regexp.Regexp
	strip string
	// serials are compared with the device's serial; model, if not empty, must begin the device's model too.
	serials []string
	model   string
	// designators are the vendor's names in SCSI's identification page, with vendor (8 bytes) and model (16 bytes) in
	// front, which names of type T10 have and vendor-specific ones get, as in udev's links. wwids are the kernel's text
	// of a world wide name.
	designators, wwids []string
	// links are below /dev, made by udev: they come later than the device, and not at all without udev's rules.
	links []string
	// match finds what texts cannot.
	match func(id string, d sysblock.Device) bool
	// rescan says that SCSI hosts may have to be asked to look for new devices.
	rescan bool
}

// schemeIndex is of volume IDs that name the disk by the digest of its index, wherever it is.
const schemeIndex = "index"

// volumeUUID is how Cinder and its descendants write IDs.
var volumeUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// cinder is OpenStack's way, with libvirt or not.
var cinder = rule{ //nolint:gochecknoglobals // a row of the table below
	valid:       volumeUUID,
	serials:     []string{"{id}", "{id20}"},
	designators: []string{"QEMU    QEMU HARDDISK   {id20}"},
	wwids:       []string{"naa.{nodash}", "eui.{nodash}"},
	links: []string{
		"disk/by-id/virtio-{id20}", "disk/by-id/virtio-{id}", "disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{id20}", "disk/by-id/wwn-0x{nodash}",
	},
}

// rules by the scheme of a volume ID, what stands before its first colon.
var rules = map[string]rule{ //nolint:gochecknoglobals // a constant table
	// Nitro shows volumes as NVMe whose serial is the ID without its dash; Xen as the device name given at the
	// attachment, see "name".
	"aws": {
		valid:   regexp.MustCompile(`^vol-[0-9a-f]{8,17}$`),
		serials: []string{"{nodash}"}, model: "Amazon Elastic Block Store",
		links: []string{"disk/by-id/nvme-Amazon_Elastic_Block_Store_{nodash}"},
	},
	// The ID is the deviceName of the attachment. NVMe keeps it where only udev's google_nvme_id reads it.
	"gcp": {
		valid:       regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`),
		designators: []string{"Google  PersistentDisk  {id}"},
		links:       []string{"disk/by-id/google-{id}", "disk/by-id/scsi-0Google_PersistentDisk_{id}"},
	},
	// The ID is the LUN of the data disk in the machine's description.
	"azure": {
		valid: regexp.MustCompile(`^(0|[1-9][0-9]?)$`),
		links: []string{"disk/azure/scsi1/lun{id}", "disk/azure/data/by-lun/{id}"},
		match: azureLUN, rescan: true,
	},
	"alibaba": {
		valid: regexp.MustCompile(`^d-[a-z0-9]+$`), strip: "d-",
		serials: []string{"{bare}"},
		links:   []string{"disk/by-id/virtio-{bare}", "disk/by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_{bare}"},
	},
	"huawei": {
		valid:       volumeUUID,
		serials:     cinder.serials,
		designators: cinder.designators,
		wwids:       cinder.wwids,
		links:       append([]string{"disk/by-id/scsi-3{nodash}"}, cinder.links...),
	},
	"openstack": cinder,
	"tencent": {
		valid:   regexp.MustCompile(`^disk-[a-z0-9]+$`),
		serials: []string{"{id}", "{id20}"},
		links:   []string{"disk/by-id/virtio-{id}"},
	},
	"volcengine": {
		valid: regexp.MustCompile(`^vol-[a-z0-9]+$`), strip: "vol-",
		serials: []string{"{bare}", "{bare20}"},
		links:   []string{"disk/by-id/virtio-{id}"},
	},
	"rbd": {
		valid: regexp.MustCompile(`^[^/@]+/[^/@]+(@[^/@]+)?$`),
		links: []string{"rbd/{id}"},
		match: func(id string, d sysblock.Device) bool { return d.Kind.RBD == id },
	},
	// What follows is of no cloud: what a person can read from lsblk.
	"serial": {serials: []string{"{id}", "{id20}"}},
	"wwn": {
		valid: regexp.MustCompile(`^(0x)?[0-9a-f]{16,32}$`), strip: "0x",
		wwids: []string{"naa.{bare}", "eui.{bare}"},
		links: []string{"disk/by-id/wwn-0x{bare}"},
	},
	"by-id": {links: []string{"disk/by-id/{id}"}},
	"scsi": {
		valid: regexp.MustCompile(`^[0-9]+:[0-9]+:[0-9]+:[0-9]+$`), rescan: true,
		match: func(id string, d sysblock.Device) bool {
			a := d.Kind.SCSI
			return a != nil && id == fmt.Sprintf("%d:%d:%d:%d", a.Host, a.Channel, a.Target, a.LUN)
		},
	},
	// A device name, as a cloud on Xen gives it: the image may have made a link of that name to another.
	"name": {
		valid: regexp.MustCompile(`^(xvd|sd|vd|hd|nvme)[a-z0-9]+$`),
		links: []string{"{id}"},
		match: xenName,
	},
	"loop": {
		valid: regexp.MustCompile(`^/`),
		match: func(id string, d sysblock.Device) bool { return d.Kind.Loop == id },
	},
}

// azureLUN: Hyper-V's SCSI disks have the LUN; so may those of the system and of the temporary disk, on hosts that
// differ between the generations of machines. These are in use and have partitions, which is what tells them apart.
// With NVMe the system disk is namespace 1 and the data disks follow (azure-vm-utils).
func azureLUN(id string, d sysblock.Device) bool {
	lun, err := strconv.Atoi(id)
	if err != nil {
		return false
	}
	if strings.HasPrefix(d.IDs.Model, "MSFT NVMe Accelerator") {
		return d.Kind.Namespace == lun+2
	}
	a := d.Kind.SCSI
	return a != nil && d.IDs.Vendor == "Msft" && d.IDs.Model == "Virtual Disk" && a.LUN == lun
}

// xenName: volumes that were attached as sdf are xvdf on Xen.
func xenName(id string, d sysblock.Device) bool {
	rest, ok := strings.CutPrefix(id, "sd")
	return ok && d.Name == "xvd"+rest
}

// volumeID is a volume ID taken apart.
type volumeID struct {
	scheme, id string
	rule       rule
}

// maxIDBytes is more than any cloud's ID or path has.
const maxIDBytes = 4096

func parseVolumeID(s string) (volumeID, error) {
	scheme, id, _ := strings.Cut(s, ":")
	v := volumeID{scheme: scheme, id: id}
	r, ok := rules[scheme]
	if !ok && scheme != schemeIndex {
		return v, fmt.Errorf("volume ID %q: want SCHEME:ID with one of %s: %w", s, strings.Join(Schemes(), ", "), blockdev.ErrInvalid)
	}
	v.rule = r
	switch {
	case id == "" || len(id) > maxIDBytes || strings.ContainsRune(id, 0):
		ok = false
	case scheme == schemeIndex:
		ok = validDigest(id)
	case r.valid != nil:
		ok = r.valid.MatchString(id)
	default:
		ok = !strings.Contains(id, "/") && id != "." && id != ".."
	}
	if ok && scheme == "rbd" {
		ok = filepath.IsLocal(id) && filepath.Clean(id) == id
	}
	if !ok {
		return v, fmt.Errorf("volume ID %q: %q is no ID of %s: %w", s, id, scheme, blockdev.ErrInvalid)
	}
	return v, nil
}

// Schemes are what a volume ID can begin with, sorted.
func Schemes() []string {
	all := []string{schemeIndex}
	for s := range rules {
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

// virtioSerialBytes is VIRTIO_BLK_ID_BYTES (include/uapi/linux/virtio_blk.h).
const virtioSerialBytes = 20

// expand makes the texts of a template.
func (v volumeID) expand(templates []string) []string {
	bare := strings.TrimPrefix(v.id, v.rule.strip)
	replace := strings.NewReplacer(
		"{id}", v.id, "{id20}", first20(v.id),
		"{bare}", bare, "{bare20}", first20(bare),
		"{nodash}", strings.ReplaceAll(v.id, "-", ""))
	all := make([]string, len(templates))
	for i, t := range templates {
		all[i] = replace.Replace(t)
	}
	return all
}

func first20(s string) string { return s[:min(len(s), virtioSerialBytes)] }

// how well a device fits a volume ID, the best first.
const (
	fitsWell = iota
	// fitsPrefix is a serial that was cut off: other volumes may have the same.
	fitsPrefix
	fitsNot
)

// fits says how well the device's own facts fit the volume.
func (v volumeID) fits(d sysblock.Device) int {
	if d.Parent != "" {
		return fitsNot
	}
	if v.rule.match != nil && v.rule.match(v.id, d) {
		return fitsWell
	}
	best := fitsNot
	if strings.HasPrefix(d.IDs.Model, v.rule.model) && d.IDs.Serial != "" {
		best = v.fitsText(v.rule.serials, func(serial string) bool { return d.IDs.Serial == serial })
	}
	wwids := v.expand(v.rule.wwids)
	if d.IDs.WWID != "" && slices.Contains(wwids, d.IDs.WWID) {
		return fitsWell
	}
	own := fmt.Sprintf("%-8s%-16s", d.IDs.Vendor, d.IDs.Model)
	return min(best, v.fitsText(v.rule.designators, func(want string) bool {
		return slices.ContainsFunc(d.IDs.Designators, func(got string) bool { return got == want || own+got == want })
	}))
}

// fitsText says how well the templates fit whose text is what the device says.
func (v volumeID) fitsText(templates []string, says func(string) bool) int {
	best := fitsNot
	whole := make([]string, len(templates))
	for i, t := range templates {
		whole[i] = strings.ReplaceAll(t, "20}", "}")
	}
	whole = v.expand(whole)
	for i, text := range v.expand(templates) {
		switch {
		case !says(text):
		case text != whole[i]:
			best = min(best, fitsPrefix)
		default:
			best = fitsWell
		}
	}
	return best
}
