package attached

import (
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

// claims are the records of one driver, and what they say of devices. It is not safe for concurrent use.
type claims struct {
	dir   string
	boot  string
	roots sysblock.Roots
}

// claim attaches the volume on the device.
func (c claims) claim(id string, dev sysblock.Device, opts blockdev.AttachOptions) (blockdev.Device, error) {
	others, err := c.records()
	if err != nil {
		return blockdev.Device{}, err
	}
	for _, r := range others {
		if r.BootID == c.boot && r.of(dev) {
			return blockdev.Device{}, fmt.Errorf("%s is attached as volume %s: detach that first: %w", dev.Path, r.VolumeID, blockdev.ErrInUse)
		}
	}
	was, err := claimable(dev, opts)
	if err != nil {
		return blockdev.Device{}, err
	}
	r := record{VolumeID: id, Name: dev.Name, Number: dev.Number, Sequence: dev.Sequence, BootID: c.boot,
		ReadOnly: opts.ReadOnly, MadeReadOnly: opts.ReadOnly && !was}
	if err := c.write(r); err != nil {
		return blockdev.Device{}, err
	}
	if opts.ReadOnly {
		_, err = device.ClaimReadOnly(dev.Path)
	}
	if err == nil {
		// Between looking and claiming, the name may have become another disk's.
		var ok bool
		if _, ok, err = c.present(r); err == nil && !ok {
			err = errAbsent
		}
	}
	if err != nil {
		return blockdev.Device{}, errors.Join(err, c.release(r))
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

// release undoes claim, as far as the device still is the one.
func (c claims) release(r record) error {
	dev, ok, err := c.present(r)
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
	return c.remove(r.VolumeID)
}

// present finds the device of a record, which may have left, with or without another in its place.
func (c claims) present(r record) (sysblock.Device, bool, error) {
	if r.BootID != c.boot {
		return sysblock.Device{}, false, nil
	}
	all, err := sysblock.List(c.roots)
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

// attachment says whether and how the volume is attached, and forgets attachments whose device has left.
func (c claims) attachment(id string, opts blockdev.AttachOptions) (blockdev.Device, bool, error) {
	r, ok, err := durable.Read[record](c.path(id))
	if err != nil || !ok {
		return blockdev.Device{}, false, err
	}
	dev, ok, err := c.current(r)
	if err != nil {
		return blockdev.Device{}, false, err
	}
	if !ok {
		return blockdev.Device{}, false, c.release(r)
	}
	if dev.ReadOnly != opts.ReadOnly {
		return blockdev.Device{}, false, fmt.Errorf("it is attached as %s with read-only %t: %w", dev.Path, dev.ReadOnly, blockdev.ErrExists)
	}
	return dev, true, nil
}

// current is the attachment of a record. One that a crash interrupted before the device became read-only is none.
func (c claims) current(r record) (blockdev.Device, bool, error) {
	dev, ok, err := c.present(r)
	if err != nil || !ok {
		return blockdev.Device{}, false, err
	}
	readonly, err := device.ReadOnly(dev.Path)
	if errors.Is(err, blockdev.ErrNotFound) {
		return blockdev.Device{}, false, nil
	}
	return blockdev.Device{Path: dev.Path, ReadOnly: r.ReadOnly}, readonly || !r.ReadOnly, err
}

func (c claims) path(volumeID string) string {
	sum := sha256.Sum256([]byte(volumeID))
	return filepath.Join(c.dir, hex.EncodeToString(sum[:16])+recordSuffix)
}

func (c claims) records() ([]record, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	var all []record
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		r, ok, err := durable.Read[record](filepath.Join(c.dir, e.Name()))
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
func (c claims) write(r record) error { return durable.Write(c.path(r.VolumeID), r) }

func (c claims) remove(volumeID string) error { return durable.Remove(c.path(volumeID)) }
