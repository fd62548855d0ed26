package attached

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/sysblock"
	"berth.dev/berth/internal/durable"
)

// record is written before a device is changed and deleted after that was undone, so that a process after this one
// knows what to undo.
type record struct {
	VolumeID string `json:"volumeID"`
	// Name, Number and Sequence are the device's, in the boot of BootID: after another they mean nothing.
	Name     string `json:"name"`
	Number   uint64 `json:"number"`
	Sequence uint64 `json:"sequence"`
	BootID   string `json:"bootID"`
	ReadOnly bool   `json:"readOnly"`
	// MadeReadOnly says that it was writable before.
	MadeReadOnly bool `json:"madeReadOnly,omitempty"`
}

func (r record) of(d sysblock.Device) bool {
	return d.Same(sysblock.Device{Name: r.Name, Number: r.Number, Sequence: r.Sequence})
}

const recordSuffix = ".json"

// claim attaches the volume on the device. The key is held.
func (d *Driver) claim(id string, dev sysblock.Device, opts blockdev.AttachOptions) (blockdev.Device, error) {
	others, err := d.records()
	if err != nil {
		return blockdev.Device{}, err
	}
	for _, r := range others {
		if r.BootID == d.boot && r.of(dev) {
			return blockdev.Device{}, fmt.Errorf("%s is attached as volume %s: detach that first: %w", dev.Path, r.VolumeID, blockdev.ErrInUse)
		}
	}
	was, err := claimable(dev, opts)
	if err != nil {
		return blockdev.Device{}, err
	}
	r := record{VolumeID: id, Name: dev.Name, Number: dev.Number, Sequence: dev.Sequence, BootID: d.boot,
		ReadOnly: opts.ReadOnly, MadeReadOnly: opts.ReadOnly && !was}
	if err := d.write(r); err != nil {
		return blockdev.Device{}, err
	}
	if opts.ReadOnly {
		_, err = device.ClaimReadOnly(dev.Path)
	}
	if err == nil {
		// Between looking and claiming, the name may have become another disk's.
		var ok bool
		if _, ok, err = d.present(r); err == nil && !ok {
			err = errAbsent
		}
	}
	if err != nil {
		return blockdev.Device{}, errors.Join(err, d.release(r))
	}
	return blockdev.Device{Path: dev.Path, ReadOnly: opts.ReadOnly}, nil
}

// claimable says whether the device is read-only already, and refuses one that is somebody's.
func claimable(dev sysblock.Device, opts blockdev.AttachOptions) (readonly bool, err error) {
	number, err := device.Number(dev.Path)
	if errors.Is(err, blockdev.ErrNotFound) || err == nil && number != dev.Number {
		return false, errAbsent
	}
	if err != nil {
		return false, err
	}
	used, err := device.InUse(dev.Path)
	if err != nil {
		return false, err
	}
	if used {
		return false, fmt.Errorf("%s is mounted or claimed by others: %w", dev.Path, blockdev.ErrInUse)
	}
	readonly, err = device.ReadOnly(dev.Path)
	if err == nil && readonly && !opts.ReadOnly {
		err = fmt.Errorf("%s is read-only: %w", dev.Path, blockdev.ErrUnsupported)
	}
	return readonly, err
}

// release undoes claim, as far as the device still is the one. The key is held.
func (d *Driver) release(r record) error {
	dev, ok, err := d.present(r)
	if err != nil {
		return err
	}
	if ok {
		used, err := device.InUse(dev.Path)
		if err != nil && !errors.Is(err, blockdev.ErrNotFound) {
			return err
		}
		if used {
			return blockdev.ErrInUse
		}
		if err == nil && r.MadeReadOnly {
			_, err = device.SetReadOnly(dev.Path, false)
		}
		if err != nil && !errors.Is(err, blockdev.ErrNotFound) {
			return err
		}
	}
	return d.remove(r.VolumeID)
}

// present finds the device of a record, which may have left, with or without another in its place.
func (d *Driver) present(r record) (sysblock.Device, bool, error) {
	if r.BootID != d.boot {
		return sysblock.Device{}, false, nil
	}
	all, err := sysblock.List(d.scanner.opts.Roots)
	if err != nil {
		return sysblock.Device{}, false, err
	}
	for _, dev := range all {
		if r.of(dev) && dev.SizeBytes > 0 {
			number, err := device.Number(dev.Path)
			if errors.Is(err, blockdev.ErrNotFound) {
				return sysblock.Device{}, false, nil
			}
			return dev, err == nil && number == dev.Number, err
		}
	}
	return sysblock.Device{}, false, nil
}

// attachment says whether and how the volume is attached, and forgets attachments whose device has left. The key is
// held.
func (d *Driver) attachment(id string, opts blockdev.AttachOptions) (blockdev.Device, bool, error) {
	r, ok, err := durable.Read[record](d.path(id))
	if err != nil || !ok {
		return blockdev.Device{}, false, err
	}
	dev, ok, err := d.current(r)
	if err != nil {
		return blockdev.Device{}, false, err
	}
	if !ok {
		return blockdev.Device{}, false, d.release(r)
	}
	if dev.ReadOnly != opts.ReadOnly {
		return blockdev.Device{}, false, fmt.Errorf("it is attached as %s with read-only %t: %w", dev.Path, dev.ReadOnly, blockdev.ErrExists)
	}
	return dev, true, nil
}

// current is the attachment of a record. One that a crash interrupted before the device became read-only is none.
func (d *Driver) current(r record) (blockdev.Device, bool, error) {
	dev, ok, err := d.present(r)
	if err != nil || !ok {
		return blockdev.Device{}, false, err
	}
	readonly, err := device.ReadOnly(dev.Path)
	if errors.Is(err, blockdev.ErrNotFound) {
		return blockdev.Device{}, false, nil
	}
	return blockdev.Device{Path: dev.Path, ReadOnly: r.ReadOnly}, readonly || !r.ReadOnly, err
}

// Detach lets the device go: it is writable again if Attach made it read-only. It stays attached to the node.
func (d *Driver) Detach(ctx context.Context, volumeID string) error {
	err := d.lock(ctx)
	if err == nil {
		defer d.unlock()
		var (
			r  record
			ok bool
		)
		if r, ok, err = durable.Read[record](d.path(volumeID)); err == nil && ok {
			err = d.release(r)
		}
	}
	if err != nil {
		return fmt.Errorf("detach volume %s: %w", volumeID, err)
	}
	return nil
}

// Attached lists the volumes that were attached here and whose devices are there.
func (d *Driver) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	err := d.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("list attached volumes: %w", err)
	}
	defer d.unlock()
	records, err := d.records()
	all := make(map[string]blockdev.Device, len(records))
	for _, r := range records {
		if err != nil {
			break
		}
		var (
			dev blockdev.Device
			ok  bool
		)
		if dev, ok, err = d.current(r); ok {
			all[r.VolumeID] = dev
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list attached volumes: %w", err)
	}
	return all, nil
}

func (d *Driver) path(volumeID string) string {
	sum := sha256.Sum256([]byte(volumeID))
	return filepath.Join(d.dir, hex.EncodeToString(sum[:16])+recordSuffix)
}

func (d *Driver) records() ([]record, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var all []record
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		r, ok, err := durable.Read[record](filepath.Join(d.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, r)
		}
	}
	return all, nil
}

// write is durable when it returns: a device that is read-only without anybody knowing why stays so until the next
// boot.
func (d *Driver) write(r record) error { return durable.Write(d.path(r.VolumeID), r) }

func (d *Driver) remove(volumeID string) error { return durable.Remove(d.path(volumeID)) }
