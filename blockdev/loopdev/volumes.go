package loopdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"berth.dev/berth/blockdev"
)

// blockBytes divides the size of every volume: file systems use blocks of 4 KiB, and a loop device has whole sectors.
const blockBytes = 4096

// provisioner makes and deletes volumes.
type provisioner struct {
	files *files
	held  *attachments
}

var _ blockdev.Provisioner = (*provisioner)(nil)

// CreateVolume makes a sparse file of zeros, or a volume with the content of a snapshot, which it copies only if it has
// to: see Attach. A volume ID is the volume's name. It returns the volume that is there already if it has the same
// source and size; the size is rounded up to 4 KiB.
func (d *provisioner) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	var volume blockdev.Volume
	err := checkName("volume", req.Name)
	if err == nil && (req.SizeBytes < 0 || req.SizeBytes == 0 && req.SourceVolumeSnapshotID == "") {
		err = fmt.Errorf("size of %d bytes: %w", req.SizeBytes, blockdev.ErrInvalid)
	}
	if err == nil {
		err = d.files.keys.Do(ctx, volumeKey(req.Name), func() (err error) {
			volume, err = d.createVolume(ctx, req)
			return err
		})
	}
	if err != nil {
		return blockdev.Volume{}, fmt.Errorf("create volume %s: %w", req.Name, err)
	}
	return volume, nil
}

func (d *provisioner) createVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	size := (req.SizeBytes + blockBytes - 1) / blockBytes * blockBytes
	have, err := d.files.load(volumesDir, req.Name)
	if err == nil {
		if have.Source != req.SourceVolumeSnapshotID || size != 0 && size != have.sizeBytes {
			return blockdev.Volume{}, fmt.Errorf("it has %d bytes and source %q: %w", have.sizeBytes, have.Source, blockdev.ErrExists)
		}
		return volumeOf(req.Name, have), nil
	}
	if !errors.Is(err, blockdev.ErrNotFound) {
		return blockdev.Volume{}, err
	}
	if req.SourceVolumeSnapshotID == "" {
		err = d.files.make(volumesDir, req.Name, meta{Created: time.Now().UTC()}, func(path string) error {
			return writeSynced(path, func(f *os.File) error { return f.Truncate(size) })
		})
	} else {
		err = d.files.keys.Do(ctx, volumeSnapshotKey(req.SourceVolumeSnapshotID), func() error {
			return d.createFrom(ctx, req.Name, req.SourceVolumeSnapshotID, size)
		})
	}
	if err != nil {
		return blockdev.Volume{}, err
	}
	have, err = d.files.load(volumesDir, req.Name)
	return volumeOf(req.Name, have), err
}

// createFrom makes a volume of a snapshot that cannot go meanwhile.
func (d *provisioner) createFrom(ctx context.Context, name, snapshotID string, size int64) error {
	if checkName("volume snapshot", snapshotID) != nil {
		return fmt.Errorf("volume snapshot %s: %w", snapshotID, blockdev.ErrNotFound)
	}
	source, err := d.files.load(snapshotsDir, snapshotID)
	if err != nil {
		return fmt.Errorf("volume snapshot %s: %w", snapshotID, err)
	}
	if size == 0 {
		size = source.sizeBytes
	}
	if size < source.sizeBytes {
		return fmt.Errorf("%d bytes are less than the %d of volume snapshot %s: %w", size, source.sizeBytes, snapshotID, blockdev.ErrInvalid)
	}
	return d.files.make(volumesDir, name, meta{Source: snapshotID, Created: time.Now().UTC()}, func(path string) error {
		return d.files.duplicate(ctx, path, d.files.path(snapshotsDir, snapshotID, diskFile), size)
	})
}

func volumeOf(name string, o object) blockdev.Volume {
	return blockdev.Volume{ID: name, Name: name, SizeBytes: o.sizeBytes, SourceVolumeSnapshotID: o.Source}
}

// DeleteVolume deletes a volume that this driver made. One that the user brought is ErrUnsupported.
func (d *provisioner) DeleteVolume(ctx context.Context, volumeID string) error {
	if filepath.IsAbs(volumeID) {
		return fmt.Errorf("delete volume %s: it is not the driver's: %w", volumeID, blockdev.ErrUnsupported)
	}
	if checkName("volume", volumeID) != nil {
		return nil //nolint:nilerr // there can be none
	}
	err := d.files.keys.Do(ctx, volumeKey(volumeID), func() error {
		_, attached, err := d.held.attachment(volumeID)
		if err == nil && attached {
			err = fmt.Errorf("it is attached: %w", blockdev.ErrInUse)
		}
		if err != nil {
			return err
		}
		return d.files.remove(volumesDir, volumeID)
	})
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", volumeID, err)
	}
	return nil
}

// GetVolume finds a volume of the driver by its ID. Disks that the user brought are not volumes of the driver.
func (d *provisioner) GetVolume(ctx context.Context, volumeID string) (blockdev.Volume, error) {
	o, err := d.files.get(ctx, volumesDir, volumeID)
	if err != nil {
		return blockdev.Volume{}, fmt.Errorf("get volume %s: %w", volumeID, err)
	}
	return volumeOf(volumeID, o), nil
}

// ListVolumes lists the volumes of the driver by name.
func (d *provisioner) ListVolumes(ctx context.Context) ([]blockdev.Volume, error) {
	var list []blockdev.Volume
	err := d.files.each(ctx, volumesDir, func(name string, o object) { list = append(list, volumeOf(name, o)) })
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return list, nil
}
