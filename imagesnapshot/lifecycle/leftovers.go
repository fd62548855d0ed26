package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
)

// leftovers are the volume snapshots of a content that is given up. The volume that served it is the work's.
func leftovers(c imagesnapshot.Content) []imagesnapshot.Leftover {
	var list []imagesnapshot.Leftover
	for _, v := range c.VolumeSnapshots {
		list = append(list, imagesnapshot.Leftover{Driver: c.Driver, VolumeSnapshotID: v.ID, VolumeSnapshotName: v.Name})
	}
	return list
}

// everything lists what an image snapshot has or may have in the storage.
func everything(s *imagesnapshot.ImageSnapshot, n names, b backends) []imagesnapshot.Leftover {
	list := leftovers(s.Status.Content)
	w := s.Status.Work
	if w == nil {
		return list
	}
	list = append(list, w.Garbage...)
	if w.VolumeName != "" {
		list = append(list, imagesnapshot.Leftover{Driver: w.Driver, VolumeID: w.VolumeID, VolumeName: w.VolumeName, Attached: s.Status.VolumeID == ""})
	}
	list = append(list, w.DonorVolumes()...)
	if w.Built != nil {
		list = append(list, leftovers(*w.Built)...)
	}
	if w.Previous != nil {
		list = append(list, leftovers(*w.Previous)...)
	}
	if b.flashes(w.Driver) {
		list = append(list, n.flashCopies(s, w)...)
	}
	return list
}

// disposal deletes what nobody needs any longer.
type disposal struct{ backends backends }

// discard leftovers, and give those that are still there. Volume snapshots go first: some storage keeps a volume for as
// long as it has any, and one whose ID nobody was told is found by asking for it again, which takes its volume.
func (d disposal) discard(ctx context.Context, list []imagesnapshot.Leftover) (left []imagesnapshot.Leftover, err error) {
	failed := make([]bool, len(list))
	for _, one := range []func(context.Context, imagesnapshot.Leftover) error{d.discardVolumeSnapshot, d.discardVolume} {
		for i, l := range list {
			if oneErr := one(ctx, l); oneErr != nil {
				failed[i], err = true, errors.Join(err, oneErr)
			}
		}
	}
	for i, l := range list {
		if failed[i] {
			left = append(left, l)
		}
	}
	return left, err
}

func (d disposal) discardVolume(ctx context.Context, l imagesnapshot.Leftover) error {
	if l.VolumeID == "" && l.VolumeName == "" {
		return nil
	}
	b, err := d.backends.of(l.Driver)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", cmp.Or(l.VolumeName, l.VolumeID), err)
	}
	id := l.VolumeID
	if id == "" {
		list, err := b.Provisioner.ListVolumes(ctx)
		if err != nil {
			return fmt.Errorf("find volume %s: %w", l.VolumeName, err)
		}
		for _, v := range list {
			if v.Name == l.VolumeName {
				id = v.ID
			}
		}
	}
	if id == "" {
		return nil
	}
	if l.Attached {
		if err := b.Attacher.Detach(ctx, id); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return b.Provisioner.DeleteVolume(ctx, id)
}

func (d disposal) discardVolumeSnapshot(ctx context.Context, l imagesnapshot.Leftover) error {
	if l.VolumeSnapshotID == "" && l.VolumeSnapshotName == "" {
		return nil
	}
	b, err := d.backends.of(l.Driver)
	if err != nil {
		return fmt.Errorf("delete volume snapshot %s: %w", cmp.Or(l.VolumeSnapshotName, l.VolumeSnapshotID), err)
	}
	id := l.VolumeSnapshotID
	if id == "" {
		list, err := b.Snapshotter.ListVolumeSnapshots(ctx)
		if err != nil {
			return fmt.Errorf("find volume snapshot %s: %w", l.VolumeSnapshotName, err)
		}
		for _, v := range list {
			if v.Name == l.VolumeSnapshotName {
				id = v.ID
			}
		}
	}
	if id == "" {
		return nil
	}
	return b.Snapshotter.DeleteVolumeSnapshot(ctx, id)
}
