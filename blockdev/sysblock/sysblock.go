// Package sysblock lists the node's block devices, as sysfs shows them, and reports when that changes, as the kernel
// announces it. It opens no device: everything here is known without a read from one.
package sysblock

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Roots are the directories that the kernel and udev fill. The zero value is where they are on a running system.
type Roots struct {
	// Sys is /sys, Dev is /dev.
	Sys, Dev string
	// Proc is the /proc directory of a process, whose mounts count: /proc/self.
	Proc string
}

// Filled has the usual directory for each that is empty.
func (r Roots) Filled() Roots {
	return Roots{Sys: cmp.Or(r.Sys, "/sys"), Dev: cmp.Or(r.Dev, "/dev"), Proc: cmp.Or(r.Proc, "/proc/self")}
}

// Device is a block device, a whole disk or a partition.
type Device struct {
	// Name as the kernel calls it, such as "nvme0n1p2". Another disk may have it after the next boot.
	Name string
	// Path of the device file.
	Path string
	// Number as stat(2) has it.
	Number uint64
	// Sequence tells apart two disks that have the same name and number one after the other (diskseq, Linux 5.15; 0
	// before). Partitions have their disk's.
	Sequence  uint64
	SizeBytes int64
	// Parent is the whole disk of a partition; Partitions are those of a disk.
	Parent     string
	Partitions []string
	// Holders are the devices that are made of this one: device mapper, md, bcache.
	Holders []string
	// Hidden devices have no device file: the paths below an NVMe multipath device.
	Hidden bool
	IDs    IDs
	Kind   Kind
}

// IDs are what the storage calls the device, without surrounding spaces. A partition has none. What a device does not
// tell is empty.
type IDs struct {
	Vendor, Model string
	// Serial of virtio-blk, NVMe (of the controller) or SCSI (VPD page 0x80).
	Serial string
	// WWID is the kernel's text for a world wide name: naa.…, eui.…, t10.…, nvme.….
	WWID string
	// Designators are the texts in the identification page 0x83 of SCSI; the vendor's name begins those of type T10.
	Designators []string
}

// Kind has what only some kinds of devices have.
type Kind struct {
	// SCSI address; nil for others.
	SCSI *SCSIAddress
	// Namespace of NVMe; 0 for others.
	Namespace int
	// Loop is the file that a loop device, or the one a partition is of, stands for, by its name when it was attached.
	Loop string
	// Mapper is the UUID of a device mapper device, such as "mpath-…"; Suspended ones do not answer.
	Mapper    string
	Suspended bool
	// RBD is what a Ceph block device stands for, as pool/image or pool/image@snapshot.
	RBD string
}

// SCSIAddress is where a SCSI device is: what Linux writes as H:C:T:L.
type SCSIAddress struct{ Host, Channel, Target, LUN int }

// Same says whether the device is the very one that was seen before: no other disk has come in its place.
func (d Device) Same(other Device) bool {
	return d.Name == other.Name && d.Number == other.Number && d.Sequence == other.Sequence
}

// List lists all block devices by name. Those that come or go meanwhile may be missing.
func List(roots Roots) ([]Device, error) {
	roots = roots.Filled()
	class := filepath.Join(roots.Sys, "class", "block")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	var all []Device
	for _, e := range entries {
		dir, err := filepath.EvalSymlinks(filepath.Join(class, e.Name()))
		if err != nil {
			continue // gone meanwhile
		}
		d, err := read(roots, e.Name(), dir)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at block device %s: %w", e.Name(), err)
		}
		all = append(all, d)
	}
	family(all)
	slices.SortFunc(all, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// gone says that sysfs has no such device any more.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

func read(roots Roots, name, dir string) (Device, error) {
	d := Device{Name: name}
	if err := readEvent(&d, roots, dir); err != nil {
		return Device{}, err
	}
	sectors, err := number(dir, "size")
	if err != nil {
		return Device{}, err
	}
	d.SizeBytes = int64(min(sectors, 1<<53)) * 512 //nolint:gosec // bounded
	d.Hidden = text(dir, "hidden") == "1"
	d.Holders = names(filepath.Join(dir, "holders"))
	if text(dir, "partition") != "" {
		d.Parent = filepath.Base(filepath.Dir(dir))
		return d, nil
	}
	readKind(&d, roots, dir)
	readIDs(&d, dir)
	return d, nil
}

// readEvent reads what an event about the device would say.
func readEvent(d *Device, roots Roots, dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil {
		return err
	}
	var major, minor uint64
	for line := range bytes.Lines(data) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), "=")
		switch key {
		case "MAJOR":
			major, err = strconv.ParseUint(value, 10, 32)
		case "MINOR":
			minor, err = strconv.ParseUint(value, 10, 32)
		case "DISKSEQ":
			d.Sequence, err = strconv.ParseUint(value, 10, 64)
		case "DEVNAME":
			d.Path = filepath.Join(roots.Dev, filepath.Clean("/"+value))
		}
		if err != nil {
			return err
		}
	}
	if d.Path == "" {
		// A hidden device has no name in /dev.
		d.Path = filepath.Join(roots.Dev, strings.ReplaceAll(d.Name, "!", "/"))
	}
	d.Number = unix.Mkdev(uint32(major), uint32(minor))
	return nil
}

func readKind(d *Device, roots Roots, dir string) {
	d.Kind.Loop = text(dir, "loop/backing_file")
	d.Kind.Mapper = text(dir, "dm/uuid")
	d.Kind.Suspended = text(dir, "dm/suspended") == "1"
	if n, err := number(dir, "nsid"); err == nil {
		d.Kind.Namespace = int(min(n, 1<<31)) //nolint:gosec // bounded
	}
	if device, err := filepath.EvalSymlinks(filepath.Join(dir, "device")); err == nil {
		var a SCSIAddress
		if n, err := fmt.Sscanf(filepath.Base(device), "%d:%d:%d:%d", &a.Host, &a.Channel, &a.Target, &a.LUN); err == nil && n == 4 {
			d.Kind.SCSI = &a
		}
	}
	if id, ok := strings.CutPrefix(d.Name, "rbd"); ok {
		rbd := filepath.Join(roots.Sys, "bus", "rbd", "devices", filepath.Base(id))
		if pool, image := text(rbd, "pool"), text(rbd, "name"); pool != "" && image != "" {
			d.Kind.RBD = pool + "/" + image
			// The kernel writes "-" for the image itself (Documentation/ABI/testing/sysfs-bus-rbd).
			if snap := text(rbd, "current_snap"); snap != "" && snap != "-" {
				d.Kind.RBD += "@" + snap
			}
		}
	}
}

func readIDs(d *Device, dir string) {
	d.IDs = IDs{
		Vendor: text(dir, "device/vendor"),
		Model:  text(dir, "device/model"),
		Serial: cmp.Or(text(dir, "serial"), text(dir, "device/serial")),
		WWID:   cmp.Or(text(dir, "wwid"), text(dir, "device/wwid")),
	}
	if page, err := os.ReadFile(filepath.Join(dir, "device", "vpd_pg80")); err == nil && d.IDs.Serial == "" {
		d.IDs.Serial = unitSerial(page)
	}
	if page, err := os.ReadFile(filepath.Join(dir, "device", "vpd_pg83")); err == nil {
		d.IDs.Designators = designators(page)
	}
}

// family fills in the partitions of disks, and what partitions have from their disk.
func family(all []Device) {
	at := make(map[string]int, len(all))
	for i, d := range all {
		at[d.Name] = i
	}
	for i := range all {
		p, ok := at[all[i].Parent]
		if all[i].Parent == "" || !ok {
			continue
		}
		all[p].Partitions = append(all[p].Partitions, all[i].Name)
		all[i].Sequence, all[i].Kind.Loop = all[p].Sequence, all[p].Kind.Loop
	}
	for i := range all {
		slices.Sort(all[i].Partitions)
	}
}

// maxText bounds what is read of one attribute; sysfs gives a page at most.
const maxText = 4096

// text is an attribute's first line without the padding that SCSI and NVMe put around; empty if there is none.
func text(dir, name string) string {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, maxText).ReadSlice('\n')
	if err != nil && len(line) == 0 {
		return ""
	}
	return strings.Trim(string(line), " \t\r\n\x00")
}

func number(dir, name string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
