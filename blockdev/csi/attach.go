package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
)

// attachment is written before the CSI driver is asked for the first step, and deleted after the last step back.
type attachment struct {
	VolumeID string `json:"volumeID"`
	// ReadOnly is what was asked for.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Number of the device, once it has appeared, and whether we have set its read-only flag.
	Number       uint64 `json:"number,omitempty"`
	MadeReadOnly bool   `json:"madeReadOnly,omitempty"`
}

const (
	deviceFile = "device"
	// undoTimeout bounds undoing an Attach that went wrong, whose own context may have ended.
	undoTimeout = 30 * time.Second
)

// attacher has devices appear and disappear.
type attacher struct {
	c           *connection
	find        *finder
	attachments store[attachment]
	// reserving is held while attachments are counted and one more is written.
	reserving sync.Mutex
}

func (d *attacher) stagingPath(volumeID string) string {
	return filepath.Join(d.c.config.Directory, stagingDir, hash(volumeID))
}

func (d *attacher) targetPath(volumeID string) string {
	return filepath.Join(d.c.config.Directory, publishDir, hash(volumeID), deviceFile)
}

// Attach goes the steps that the CSI driver has: publish by the controller, stage, publish on the node. A volume that
// is attached the other way is ErrExists. What the driver refuses is undone; what it did not answer in time stays
// begun, for Attach to go on with or Detach to undo.
func (d *attacher) Attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	var dev blockdev.Device
	err := d.c.keys.Do(ctx, volumeID, func() (err error) {
		dev, err = d.attach(ctx, volumeID, opts)
		return err
	})
	if err != nil {
		return blockdev.Device{}, fmt.Errorf("attach volume %s: %w", volumeID, err)
	}
	return dev, nil
}

func (d *attacher) attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	if volumeID == "" {
		return blockdev.Device{}, fmt.Errorf("no volume ID: %w", blockdev.ErrInvalid)
	}
	rec, begun, err := d.attachments.get(volumeID)
	if err != nil {
		return blockdev.Device{}, err
	}
	if begun {
		dev, there, err := d.device(rec)
		if err != nil {
			return blockdev.Device{}, err
		}
		if there && rec.ReadOnly != opts.ReadOnly {
			return blockdev.Device{}, fmt.Errorf("it is attached as %s with read-only %t: %w", dev.Path, rec.ReadOnly, blockdev.ErrExists)
		}
		if there {
			return d.protect(&rec)
		}
	}
	p, err := d.c.connect(ctx)
	if err != nil {
		return blockdev.Device{}, err
	}
	if begun && rec.ReadOnly != opts.ReadOnly {
		// Begun the other way, and not come to its end.
		if err := d.lower(ctx, p, rec); err != nil {
			return blockdev.Device{}, err
		}
		begun = false
	}
	if !begun {
		rec = attachment{VolumeID: volumeID, ReadOnly: opts.ReadOnly}
		if err := d.reserve(p, rec); err != nil {
			return blockdev.Device{}, err
		}
	}
	dev, err := d.raise(ctx, p, &rec)
	if err != nil && !blockdev.Retryable(err) && ctx.Err() == nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if undoErr := d.lower(undo, p, rec); undoErr != nil {
			err = errors.Join(err, fmt.Errorf("undo: %w", undoErr))
		}
	}
	return dev, err
}

// reserve writes the record of a new attachment, if the node can have one more. Other users of the CSI driver may have
// attached volumes too: those the driver counts.
func (d *attacher) reserve(p *plugin, rec attachment) error {
	d.reserving.Lock()
	defer d.reserving.Unlock()
	if p.maxVolumes > 0 {
		all, err := d.attachments.all()
		if err != nil {
			return err
		}
		if len(all) >= p.maxVolumes {
			return fmt.Errorf("%d volumes are attached: %w", len(all), blockdev.ErrAttachLimit)
		}
	}
	return d.attachments.put(rec.VolumeID, rec)
}

// raise has the volume's device appear and protects it. Every step can be repeated.
func (d *attacher) raise(ctx context.Context, p *plugin, rec *attachment) (blockdev.Device, error) {
	volumeContext, err := d.volumeContext(ctx, p, rec.VolumeID)
	if err != nil {
		return blockdev.Device{}, err
	}
	st := steps{d, p, rec.VolumeID, volumeContext, rec.ReadOnly}
	publishContext, err := st.publish(ctx)
	if err == nil {
		err = st.stage(ctx, publishContext)
	}
	if err == nil {
		err = st.publishHere(ctx, publishContext)
	}
	if err != nil {
		d.c.forget(err)
		return blockdev.Device{}, err
	}
	number, err := device.Number(d.targetPath(rec.VolumeID))
	if err != nil {
		return blockdev.Device{}, fmt.Errorf("the driver published no device that is seen here, is %s mounted into it with propagation? %w: %w",
			d.c.config.Directory, err, blockdev.ErrFailed)
	}
	rec.Number = number
	if err := d.attachments.put(rec.VolumeID, *rec); err != nil {
		return blockdev.Device{}, err
	}
	return d.protect(rec)
}

// protect makes the kernel refuse writes to the device if that was asked for, whatever the driver did about it.
func (d *attacher) protect(rec *attachment) (blockdev.Device, error) {
	target := d.targetPath(rec.VolumeID)
	readonly, err := device.ReadOnly(target)
	if err != nil {
		return blockdev.Device{}, err
	}
	if rec.ReadOnly && !readonly {
		rec.MadeReadOnly = true
		if err := d.attachments.put(rec.VolumeID, *rec); err != nil {
			return blockdev.Device{}, err
		}
		if _, err := device.ClaimReadOnly(target); err != nil {
			return blockdev.Device{}, err
		}
		readonly = true
	}
	return blockdev.Device{Path: devicePath(target, rec.Number), ReadOnly: readonly}, nil
}

// devicePath is the device file that people know, if it is the same device: the target path says nothing to them.
func devicePath(target string, number uint64) string {
	name, err := device.Name(number)
	if err != nil {
		return target
	}
	known := filepath.Join("/dev", name)
	if n, err := device.Number(known); err != nil || n != number {
		return target
	}
	return known
}

// device looks whether the volume's device is there: after a crash in the middle, or a reboot, it is not.
func (d *attacher) device(rec attachment) (blockdev.Device, bool, error) {
	target := d.targetPath(rec.VolumeID)
	number, err := device.Number(target)
	// A file in place of the device is what a reboot leaves of a bind mount.
	if errors.Is(err, blockdev.ErrNotFound) || errors.Is(err, blockdev.ErrInvalid) || err == nil && (rec.Number == 0 || number != rec.Number) {
		return blockdev.Device{}, false, nil
	}
	if err != nil {
		return blockdev.Device{}, false, err
	}
	readonly, err := device.ReadOnly(target)
	if errors.Is(err, blockdev.ErrNotFound) {
		return blockdev.Device{}, false, nil // the device itself has gone
	}
	if err != nil {
		return blockdev.Device{}, false, err
	}
	return blockdev.Device{Path: devicePath(target, number), ReadOnly: readonly}, true, nil
}

// volumeContext is what the driver wants back of what it said when the volume was made.
func (d *attacher) volumeContext(ctx context.Context, p *plugin, volumeID string) (map[string]string, error) {
	rec, found, err := d.find.recordOf(volumeID)
	if err != nil || found || !p.getVolume {
		return rec.Context, err
	}
	v, err := d.find.askVolume(ctx, volumeID)
	return v.GetVolumeContext(), err
}

// Detach goes the steps of Attach back. A volume whose device is in use is ErrInUse, and stays attached.
func (d *attacher) Detach(ctx context.Context, volumeID string) error {
	err := d.c.keys.Do(ctx, volumeID, func() error {
		rec, begun, err := d.attachments.get(volumeID)
		if err != nil || !begun {
			return err
		}
		p, err := d.c.connect(ctx)
		if err != nil {
			return err
		}
		return d.lower(ctx, p, rec)
	})
	if err != nil {
		return fmt.Errorf("detach volume %s: %w", volumeID, err)
	}
	return nil
}

// lower undoes raise from wherever it came to.
func (d *attacher) lower(ctx context.Context, p *plugin, rec attachment) error {
	if err := d.unprotect(rec); err != nil {
		return err
	}
	st := steps{d, p, rec.VolumeID, nil, rec.ReadOnly}
	for _, step := range []func(context.Context) error{st.unpublishHere, st.unstage, st.unpublish} {
		// Of a volume that does not exist any more, there is nothing to undo.
		if err := step(ctx); err != nil && !errors.Is(err, blockdev.ErrNotFound) {
			d.c.forget(err)
			return err
		}
	}
	return d.attachments.remove(rec.VolumeID)
}

// unprotect makes sure that nobody uses the device and gives it back as it was.
func (d *attacher) unprotect(rec attachment) error {
	target := d.targetPath(rec.VolumeID)
	number, err := device.Number(target)
	if errors.Is(err, blockdev.ErrNotFound) || errors.Is(err, blockdev.ErrInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	used, err := device.InUse(target)
	if errors.Is(err, blockdev.ErrNotFound) {
		return nil // the device itself has gone
	}
	if err != nil {
		return err
	}
	if used {
		return fmt.Errorf("device %s: %w", devicePath(target, number), blockdev.ErrInUse)
	}
	if !rec.MadeReadOnly || number != rec.Number {
		return nil
	}
	_, err = device.SetReadOnly(target, false)
	return err
}

// Attached lists the volumes that were attached here and whose devices are there. The CSI driver is not asked.
func (d *attacher) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	records, err := d.attachments.all()
	if err != nil {
		return nil, fmt.Errorf("list attached volumes: %w", err)
	}
	all := make(map[string]blockdev.Device, len(records))
	for _, rec := range records {
		dev, there, err := d.device(rec)
		if err != nil {
			return nil, fmt.Errorf("list attached volumes: volume %s: %w", rec.VolumeID, err)
		}
		if there {
			all[rec.VolumeID] = dev
		}
	}
	return all, nil
}

// removeDir removes a directory of ours. Never RemoveAll: whatever is in it is the driver's.
func removeDir(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
