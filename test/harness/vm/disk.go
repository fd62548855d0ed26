package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Kind of a disk: how it is joined to the machine.
type Kind int

// Kinds of disks that clouds have.
const (
	// Virtio is virtio-blk, a device of its own with a serial of 20 bytes at most.
	Virtio Kind = iota
	// NVMe is a controller of its own with one namespace.
	NVMe
	// SCSI is a logical unit of one virtio-scsi host.
	SCSI
)

// String is the kind's name.
func (k Kind) String() string { return [...]string{"virtio", "nvme", "scsi"}[k] }

// DiskSpec says what disk to plug in.
type DiskSpec struct {
	Kind Kind
	// File with the disk's content. The guest can write to it, as to a volume.
	File string
	// Serial that the device tells.
	Serial string
	// Vendor, Product and DeviceID are of SCSI only, and what its inquiry says; LUN is its logical unit number.
	Vendor, Product, DeviceID string
	LUN                       int
	// WWN is a SCSI disk's world wide name of 64 bits; 0 is none.
	WWN uint64
	// Port to use, counted from 1, for those that are not SCSI; 0 is any that is free.
	Port int
	// BadSectors, of 512 bytes each, give an error when they are read.
	BadSectors []int64
	// BytesPerSecond bounds reading and writing together; 0 does not.
	BytesPerSecond int64
}

// Disk that is plugged in.
type Disk struct {
	name string
	port int
	spec DiskSpec
}

// plugTimeout bounds what QEMU and the guest's kernel have to do for a disk.
const plugTimeout = time.Minute

// Plug a disk in while the machine runs. It returns before the guest has seen it.
func (g *Guest) Plug(ctx context.Context, spec DiskSpec) (*Disk, error) {
	d, err := g.take(spec)
	if err != nil {
		return nil, fmt.Errorf("plug in %s: %w", spec.File, err)
	}
	err = g.addBackend(ctx, d)
	if err == nil {
		if err = g.monitor.execute(ctx, "device_add", d.device()); err != nil {
			err = errors.Join(err, g.removeBackend(context.WithoutCancel(ctx), d))
		}
	}
	if err != nil {
		g.giveBack(d)
		return nil, fmt.Errorf("plug in %s: %w", spec.File, err)
	}
	return d, nil
}

// Pull the disk out. Nobody in the guest is asked, whoever uses it.
func (g *Guest) Pull(ctx context.Context, d *Disk) error {
	ctx, cancel := context.WithTimeout(ctx, plugTimeout)
	defer cancel()
	if err := g.monitor.execute(ctx, "device_del", map[string]any{"id": d.name}); err != nil {
		return fmt.Errorf("pull out %s: %w", d.spec.File, err)
	}
	if err := g.monitor.await(ctx, "DEVICE_DELETED", d.name); err != nil {
		return fmt.Errorf("pull out %s: %w", d.spec.File, err)
	}
	if err := g.removeBackend(ctx, d); err != nil {
		return fmt.Errorf("pull out %s: %w", d.spec.File, err)
	}
	g.giveBack(d)
	return nil
}

// SetSpeed changes the bytes a second of a disk that was plugged in with a bound; 0 is no bound any more.
func (g *Guest) SetSpeed(ctx context.Context, d *Disk, bytesPerSecond int64) error {
	return g.monitor.execute(ctx, "qom-set", map[string]any{
		"path": "/objects/" + d.throttle(), "property": "limits", "value": map[string]any{"bps-total": bytesPerSecond},
	})
}

func (g *Guest) take(spec DiskSpec) (*Disk, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := &Disk{spec: spec, port: -1}
	if spec.Kind != SCSI {
		at := 0
		if spec.Port > 0 {
			at = slices.Index(g.free, spec.Port-1)
		}
		if at < 0 || at >= len(g.free) {
			return nil, fmt.Errorf("port %d is not free; free are %v", spec.Port-1, g.free)
		}
		d.port = g.free[at]
		g.free = slices.Delete(g.free, at, at+1)
	}
	g.count++
	d.name = fmt.Sprintf("disk%d", g.count)
	g.disks[d.name] = d
	return d, nil
}

func (g *Guest) giveBack(d *Disk) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d.port >= 0 {
		g.free = append(g.free, d.port)
		slices.Sort(g.free)
	}
	delete(g.disks, d.name)
}

func (d *Disk) throttle() string { return d.name + "-throttle" }

// addBackend tells QEMU where the disk's bytes come from.
func (g *Guest) addBackend(ctx context.Context, d *Disk) error {
	// Several machines may have the same file, as a volume that is shared.
	node := map[string]any{"driver": "file", "filename": d.spec.File, "locking": "off"}
	if len(d.spec.BadSectors) > 0 {
		var faults []map[string]any
		for _, sector := range d.spec.BadSectors {
			faults = append(faults, map[string]any{"event": "none", "iotype": "read", "errno": 5, "sector": sector})
		}
		node = map[string]any{"driver": "blkdebug", "image": node, "inject-error": faults}
	}
	node = map[string]any{"driver": "raw", "file": node}
	if d.spec.BytesPerSecond > 0 {
		err := g.monitor.execute(ctx, "object-add", map[string]any{
			"qom-type": "throttle-group", "id": d.throttle(), "limits": map[string]any{"bps-total": d.spec.BytesPerSecond},
		})
		if err != nil {
			return err
		}
		node = map[string]any{"driver": "throttle", "throttle-group": d.throttle(), "file": node}
	}
	node["node-name"] = d.name
	return g.monitor.execute(ctx, "blockdev-add", node)
}

func (g *Guest) removeBackend(ctx context.Context, d *Disk) error {
	err := g.monitor.execute(ctx, "blockdev-del", map[string]any{"node-name": d.name})
	if err == nil && d.spec.BytesPerSecond > 0 {
		err = g.monitor.execute(ctx, "object-del", map[string]any{"id": d.throttle()})
	}
	return err
}

// device is the argument of QEMU's device_add.
func (d *Disk) device() map[string]any {
	a := map[string]any{"id": d.name, "drive": d.name}
	set := func(key, value string) {
		if value != "" {
			a[key] = value
		}
	}
	set("serial", d.spec.Serial)
	switch d.spec.Kind {
	case NVMe:
		a["driver"] = "nvme"
	case SCSI:
		a["driver"], a["bus"], a["lun"] = "scsi-hd", "scsi.0", d.spec.LUN
		set("vendor", d.spec.Vendor)
		set("product", d.spec.Product)
		set("device_id", d.spec.DeviceID)
		if d.spec.WWN != 0 {
			a["wwn"] = d.spec.WWN
		}
		return a
	case Virtio:
		a["driver"] = "virtio-blk-pci"
	}
	a["bus"] = fmt.Sprintf("port%d", d.port)
	return a
}
