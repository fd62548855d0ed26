package loopdev

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"berth.dev/berth/blockdev"
)

// snapshotter makes and deletes volume snapshots.
type snapshotter struct {
	files *files
	held  *attachments
}

var _ blockdev.VolumeSnapshotter = (*snapshotter)(nil)

// CreateVolumeSnapshot freezes what a volume holds that is not attached for writing: what is written may be still on
// its way to the file. The snapshot is ready when it returns, and changes no more when the volume is written to later:
// see Attach. A snapshot ID is the snapshot's name.
func (d *snapshotter) CreateVolumeSnapshot(ctx context.Context, name, sourceVolumeID string) (blockdev.VolumeSnapshot, error) {
	var snapshot blockdev.VolumeSnapshot
	err := checkName("volume snapshot", name)
	if err == nil && filepath.IsAbs(sourceVolumeID) {
		err = fmt.Errorf("%s is not a volume of the driver: %w", sourceVolumeID, blockdev.ErrUnsupported)
	}
	if err == nil {
		err = d.files.keys.Do(ctx, volumeKey(sourceVolumeID), func() error {
			return d.files.keys.Do(ctx, volumeSnapshotKey(name), func() (err error) {
				snapshot, err = d.createSnapshot(ctx, name, sourceVolumeID)
				return err
			})
		})
	}
	if err != nil {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("create volume snapshot %s: %w", name, err)
	}
	return snapshot, nil
}

func (d *snapshotter) createSnapshot(ctx context.Context, name, volumeID string) (blockdev.VolumeSnapshot, error) {
	have, err := d.files.load(snapshotsDir, name)
	if err == nil {
		if have.Source != volumeID {
			return blockdev.VolumeSnapshot{}, fmt.Errorf("it is of volume %s: %w", have.Source, blockdev.ErrExists)
		}
		return snapshotOf(name, have), nil
	}
	if !errors.Is(err, blockdev.ErrNotFound) {
		return blockdev.VolumeSnapshot{}, err
	}
	volume, err := d.files.get(ctx, volumesDir, volumeID)
	if err != nil {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("volume %s: %w", volumeID, err)
	}
	dev, attached, err := d.held.attachment(volumeID)
	if err == nil && attached && !dev.ReadOnly {
		err = fmt.Errorf("volume %s is attached for writing as %s, detach it first: %w", volumeID, dev.Path, blockdev.ErrInUse)
	}
	if err != nil {
		return blockdev.VolumeSnapshot{}, err
	}
	err = d.files.make(snapshotsDir, name, meta{Source: volumeID, Created: time.Now().UTC()}, func(path string) error {
		return d.files.duplicate(ctx, path, d.files.path(volumesDir, volumeID, diskFile), volume.sizeBytes)
	})
	if err != nil {
		return blockdev.VolumeSnapshot{}, err
	}
	have, err = d.files.load(snapshotsDir, name)
	return snapshotOf(name, have), err
}

func snapshotOf(name string, o object) blockdev.VolumeSnapshot {
	return blockdev.VolumeSnapshot{ID: name, Name: name, SourceVolumeID: o.Source, SizeBytes: o.sizeBytes, Created: o.Created, ReadyToUse: true}
}

// DeleteVolumeSnapshot deletes a snapshot. Volumes made from it keep what they have.
func (d *snapshotter) DeleteVolumeSnapshot(ctx context.Context, snapshotID string) error {
	if checkName("volume snapshot", snapshotID) != nil {
		return nil //nolint:nilerr // there can be none
	}
	err := d.files.keys.Do(ctx, volumeSnapshotKey(snapshotID), func() error { return d.files.remove(snapshotsDir, snapshotID) })
	if err != nil {
		return fmt.Errorf("delete volume snapshot %s: %w", snapshotID, err)
	}
	return nil
}

// GetVolumeSnapshot finds a snapshot by its ID.
func (d *snapshotter) GetVolumeSnapshot(ctx context.Context, snapshotID string) (blockdev.VolumeSnapshot, error) {
	o, err := d.files.get(ctx, snapshotsDir, snapshotID)
	if err != nil {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("get volume snapshot %s: %w", snapshotID, err)
	}
	return snapshotOf(snapshotID, o), nil
}

// ListVolumeSnapshots lists the snapshots by name.
func (d *snapshotter) ListVolumeSnapshots(ctx context.Context) ([]blockdev.VolumeSnapshot, error) {
	var list []blockdev.VolumeSnapshot
	err := d.files.each(ctx, snapshotsDir, func(name string, o object) { list = append(list, snapshotOf(name, o)) })
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return list, nil
}
