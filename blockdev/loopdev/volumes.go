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

// CreateVolume makes a sparse file of zeros, or a volume with the content of a snapshot, which it copies only if it has
// to: see Attach. A volume ID is the volume's name. It returns the volume that is there already if it has the same
// source and size; the size is rounded up to 4 KiB.
func (d *Driver) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	var volume blockdev.Volume
	err := checkName("volume", req.Name)
	if err == nil && (req.SizeBytes < 0 || req.SizeBytes == 0 && req.SourceVolumeSnapshotID == "") {
		err = fmt.Errorf("size of %d bytes: %w", req.SizeBytes, blockdev.ErrInvalid)
	}
	if err == nil {
		err = d.keys.Do(ctx, volumeKey(req.Name), func() (err error) {
			volume, err = d.createVolume(ctx, req)
			return err
		})
	}
	if err != nil {
		return blockdev.Volume{}, fmt.Errorf("create volume %s: %w", req.Name, err)
	}
	return volume, nil
}

func (d *Driver) createVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	size := (req.SizeBytes + blockBytes - 1) / blockBytes * blockBytes
	have, err := d.load(volumesDir, req.Name)
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
		err = d.make(volumesDir, req.Name, meta{Created: time.Now().UTC()}, func(path string) error {
			return writeSynced(path, func(f *os.File) error { return f.Truncate(size) })
		})
	} else {
		err = d.keys.Do(ctx, snapshotKey(req.SourceVolumeSnapshotID), func() error {
			return d.createFrom(ctx, req.Name, req.SourceVolumeSnapshotID, size)
		})
	}
	if err != nil {
		return blockdev.Volume{}, err
	}
	have, err = d.load(volumesDir, req.Name)
	return volumeOf(req.Name, have), err
}

// createFrom makes a volume of a snapshot that cannot go meanwhile.
func (d *Driver) createFrom(ctx context.Context, name, snapshotID string, size int64) error {
	if checkName("snapshot", snapshotID) != nil {
		return fmt.Errorf("snapshot %s: %w", snapshotID, blockdev.ErrNotFound)
	}
	source, err := d.load(snapshotsDir, snapshotID)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", snapshotID, err)
	}
	if size == 0 {
		size = source.sizeBytes
	}
	if size < source.sizeBytes {
		return fmt.Errorf("%d bytes are less than the %d of snapshot %s: %w", size, source.sizeBytes, snapshotID, blockdev.ErrInvalid)
	}
	return d.make(volumesDir, name, meta{Source: snapshotID, Created: time.Now().UTC()}, func(path string) error {
		return d.duplicate(ctx, path, d.path(snapshotsDir, snapshotID, diskFile), size)
	})
}

func volumeOf(name string, o object) blockdev.Volume {
	return blockdev.Volume{ID: name, Name: name, SizeBytes: o.sizeBytes, SourceVolumeSnapshotID: o.Source}
}

// DeleteVolume deletes a volume that this driver made. One that the user brought is ErrUnsupported.
func (d *Driver) DeleteVolume(ctx context.Context, volumeID string) error {
	if filepath.IsAbs(volumeID) {
		return fmt.Errorf("delete volume %s: it is not the driver's: %w", volumeID, blockdev.ErrUnsupported)
	}
	if checkName("volume", volumeID) != nil {
		return nil //nolint:nilerr // there can be none
	}
	err := d.keys.Do(ctx, volumeKey(volumeID), func() error {
		_, attached, err := d.attachment(volumeID)
		if err == nil && attached {
			err = fmt.Errorf("it is attached: %w", blockdev.ErrInUse)
		}
		if err != nil {
			return err
		}
		return d.remove(volumesDir, volumeID)
	})
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", volumeID, err)
	}
	return nil
}

// GetVolume finds a volume of the driver by its ID. Disks that the user brought are not volumes of the driver.
func (d *Driver) GetVolume(ctx context.Context, volumeID string) (blockdev.Volume, error) {
	o, err := d.get(ctx, volumesDir, volumeID)
	if err != nil {
		return blockdev.Volume{}, fmt.Errorf("get volume %s: %w", volumeID, err)
	}
	return volumeOf(volumeID, o), nil
}

// ListVolumes lists the volumes of the driver by name.
func (d *Driver) ListVolumes(ctx context.Context) ([]blockdev.Volume, error) {
	var list []blockdev.Volume
	err := d.each(ctx, volumesDir, func(name string, o object) { list = append(list, volumeOf(name, o)) })
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return list, nil
}

func (d *Driver) get(ctx context.Context, kind, name string) (object, error) {
	if err := ctx.Err(); err != nil {
		return object{}, err
	}
	if checkName(kind, name) != nil {
		return object{}, blockdev.ErrNotFound
	}
	return d.load(kind, name)
}

func (d *Driver) each(ctx context.Context, kind string, do func(string, object)) error {
	names, err := d.names(kind)
	if err != nil {
		return err
	}
	for _, name := range names {
		o, err := d.get(ctx, kind, name)
		if errors.Is(err, blockdev.ErrNotFound) {
			continue // deleted since the listing
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		do(name, o)
	}
	return nil
}

// CreateVolumeSnapshot freezes what a volume holds that is not attached for writing: what is written may be still on
// its way to the file. The snapshot is ready when it returns, and changes no more when the volume is written to later:
// see Attach. A snapshot ID is the snapshot's name.
func (d *Driver) CreateVolumeSnapshot(ctx context.Context, name, sourceVolumeID string) (blockdev.VolumeSnapshot, error) {
	var snapshot blockdev.VolumeSnapshot
	err := checkName("snapshot", name)
	if err == nil && filepath.IsAbs(sourceVolumeID) {
		err = fmt.Errorf("%s is not a volume of the driver: %w", sourceVolumeID, blockdev.ErrUnsupported)
	}
	if err == nil {
		err = d.keys.Do(ctx, volumeKey(sourceVolumeID), func() error {
			return d.keys.Do(ctx, snapshotKey(name), func() (err error) {
				snapshot, err = d.createSnapshot(ctx, name, sourceVolumeID)
				return err
			})
		})
	}
	if err != nil {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("create snapshot %s: %w", name, err)
	}
	return snapshot, nil
}

func (d *Driver) createSnapshot(ctx context.Context, name, volumeID string) (blockdev.VolumeSnapshot, error) {
	have, err := d.load(snapshotsDir, name)
	if err == nil {
		if have.Source != volumeID {
			return blockdev.VolumeSnapshot{}, fmt.Errorf("it is of volume %s: %w", have.Source, blockdev.ErrExists)
		}
		return snapshotOf(name, have), nil
	}
	if !errors.Is(err, blockdev.ErrNotFound) {
		return blockdev.VolumeSnapshot{}, err
	}
	volume, err := d.get(ctx, volumesDir, volumeID)
	if err != nil {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("volume %s: %w", volumeID, err)
	}
	dev, attached, err := d.attachment(volumeID)
	if err == nil && attached && !dev.ReadOnly {
		err = fmt.Errorf("volume %s is attached for writing as %s, detach it first: %w", volumeID, dev.Path, blockdev.ErrInUse)
	}
	if err != nil {
		return blockdev.VolumeSnapshot{}, err
	}
	err = d.make(snapshotsDir, name, meta{Source: volumeID, Created: time.Now().UTC()}, func(path string) error {
		return d.duplicate(ctx, path, d.path(volumesDir, volumeID, diskFile), volume.sizeBytes)
	})
	if err != nil {
		return blockdev.VolumeSnapshot{}, err
	}
	have, err = d.load(snapshotsDir, name)
	return snapshotOf(name, have), err
}

func snapshotOf(name string, o object) blockdev.VolumeSnapshot {
	return blockdev.VolumeSnapshot{ID: name, Name: name, SourceVolumeID: o.Source, SizeBytes: o.sizeBytes, Created: o.Created, ReadyToUse: true}
}

// DeleteVolumeSnapshot deletes a snapshot. Volumes made from it keep what they have.
func (d *Driver) DeleteVolumeSnapshot(ctx context.Context, snapshotID string) error {
	if checkName("snapshot", snapshotID) != nil {
		return nil //nolint:nilerr // there can be none
	}
	err := d.keys.Do(ctx, snapshotKey(snapshotID), func() error { return d.remove(snapshotsDir, snapshotID) })
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", snapshotID, err)
	}
	return nil
}

// GetVolumeSnapshot finds a snapshot by its ID.
func (d *Driver) GetVolumeSnapshot(ctx context.Context, snapshotID string) (blockdev.VolumeSnapshot, error) {
	o, err := d.get(ctx, snapshotsDir, snapshotID)
	if err != nil {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("get snapshot %s: %w", snapshotID, err)
	}
	return snapshotOf(snapshotID, o), nil
}

// ListVolumeSnapshots lists the snapshots by name.
func (d *Driver) ListVolumeSnapshots(ctx context.Context) ([]blockdev.VolumeSnapshot, error) {
	var list []blockdev.VolumeSnapshot
	err := d.each(ctx, snapshotsDir, func(name string, o object) { list = append(list, snapshotOf(name, o)) })
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return list, nil
}
