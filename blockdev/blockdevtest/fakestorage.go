package blockdevtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"berth.dev/berth/blockdev"
)

type fakeVolume struct {
	blockdev.Volume
	content []byte
	// asked is the size that the volume was made with, which it may exceed.
	asked int64
	seen  visibility
}

type fakeSnapshot struct {
	blockdev.VolumeSnapshot
	content []byte
	ready   time.Time
	seen    visibility
}

// visibility of an object: from and, once it is deleted, to when calls that look for it find it.
type visibility struct {
	from    time.Time
	deleted bool
	to      time.Time
}

func (v visibility) at(now time.Time) bool {
	return !now.Before(v.from) && (!v.deleted || now.Before(v.to))
}

// finish has happen what was to happen by now: detachments that were stuck, and the end of deleted objects.
func (f *Fake) finish(now time.Time) {
	for id, d := range f.attached {
		if !d.stuckUntil.IsZero() && !now.Before(d.stuckUntil) {
			f.drop(id, d)
		}
	}
	for id, v := range f.volumes {
		if v.seen.deleted && !v.seen.at(now) {
			delete(f.volumes, id)
		}
	}
	for id, s := range f.snapshots {
		if s.seen.deleted && !s.seen.at(now) {
			delete(f.snapshots, id)
		}
	}
}

func (f *Fake) newVisibility(object string) visibility {
	return visibility{from: time.Now().Add(f.draw(f.wrong.VisibleAfter, "see", object))}
}

func (f *Fake) delete(seen *visibility, object string) {
	if !seen.deleted {
		seen.deleted, seen.to = true, time.Now().Add(f.draw(f.wrong.VisibleAfter, "see deleted", object))
	}
}

// look for a volume as calls do that want it to be there; nil is none.
func (f *Fake) look(volumeID string) *fakeVolume {
	if v := f.volumes[volumeID]; v != nil && !v.seen.deleted && v.seen.at(time.Now()) {
		return v
	}
	return nil
}

// CreateVolume gives IDs that differ from the names and are never used again.
func (f *Fake) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (volume blockdev.Volume, err error) {
	err = f.do(ctx, "CreateVolume", req.Name, func() error {
		if req.Name == "" || req.SizeBytes < 0 || req.SizeBytes == 0 && req.SourceVolumeSnapshotID == "" {
			return blockdev.ErrInvalid
		}
		for _, v := range f.volumes {
			if v.Name != req.Name || v.seen.deleted {
				continue
			}
			if v.SourceVolumeSnapshotID != req.SourceVolumeSnapshotID || req.SizeBytes != 0 && req.SizeBytes != v.asked {
				return blockdev.ErrExists
			}
			volume = v.Volume
			return nil
		}
		v, err := f.newVolume(req)
		volume = v
		return err
	})
	if err != nil {
		return blockdev.Volume{}, err
	}
	return volume, nil
}

func (f *Fake) newVolume(req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	size := req.SizeBytes
	var content []byte
	if req.SourceVolumeSnapshotID != "" {
		s := f.snapshots[req.SourceVolumeSnapshotID]
		if s == nil || s.seen.deleted || !s.seen.at(time.Now()) {
			return blockdev.Volume{}, blockdev.ErrNotFound
		}
		if !s.now().ReadyToUse {
			return blockdev.Volume{}, blockdev.ErrNotReady
		}
		if size == 0 {
			size = s.SizeBytes
		}
		if size < s.SizeBytes {
			return blockdev.Volume{}, blockdev.ErrInvalid
		}
		content = s.content
	}
	asked := size
	if step := f.wrong.SizeStep; step > 0 {
		size = (size + step - 1) / step * step
	}
	// Two by two they have the same first 20 bytes, see Misbehaviour.CutSerials.
	id := fmt.Sprintf("vol-%016d-%d", f.madeVolumes/2, f.madeVolumes)
	f.madeVolumes++
	v := &fakeVolume{
		Volume:  blockdev.Volume{ID: id, Name: req.Name, SizeBytes: size, SourceVolumeSnapshotID: req.SourceVolumeSnapshotID},
		content: make([]byte, size), asked: asked, seen: f.newVisibility(req.Name),
	}
	copy(v.content, content)
	f.volumes[v.ID] = v
	return v.Volume, nil
}

// DeleteVolume deletes one that is not attached, also if it is not visible yet: who knows its ID was told it.
func (f *Fake) DeleteVolume(ctx context.Context, volumeID string) error {
	return f.do(ctx, "DeleteVolume", volumeID, func() error {
		if f.attached[volumeID] != nil {
			return blockdev.ErrInUse
		}
		if v := f.volumes[volumeID]; v != nil {
			f.delete(&v.seen, v.Name)
		}
		return nil
	})
}

// GetVolume finds a volume.
func (f *Fake) GetVolume(ctx context.Context, volumeID string) (volume blockdev.Volume, err error) {
	err = f.do(ctx, "GetVolume", volumeID, func() error {
		v := f.volumes[volumeID]
		if v == nil || !v.seen.at(time.Now()) {
			return blockdev.ErrNotFound
		}
		volume = v.Volume
		return nil
	})
	return volume, err
}

// ListVolumes lists volumes by ID.
func (f *Fake) ListVolumes(ctx context.Context) (list []blockdev.Volume, err error) {
	err = f.do(ctx, "ListVolumes", "", func() error {
		for _, id := range slices.Sorted(maps.Keys(f.volumes)) {
			if v := f.volumes[id]; v.seen.at(time.Now()) {
				list = append(list, v.Volume)
			}
		}
		return nil
	})
	return list, err
}

// now is the snapshot as it is told at this moment.
func (s *fakeSnapshot) now() blockdev.VolumeSnapshot {
	v := s.VolumeSnapshot
	v.ReadyToUse = !time.Now().Before(s.ready)
	return v
}

// CreateVolumeSnapshot gives a snapshot that is ready at once, unless Misbehaviour.ReadyAfter says otherwise.
func (f *Fake) CreateVolumeSnapshot(ctx context.Context, name, sourceVolumeID string) (snapshot blockdev.VolumeSnapshot, err error) {
	err = f.do(ctx, "CreateVolumeSnapshot", name, func() error {
		if name == "" {
			return blockdev.ErrInvalid
		}
		for _, s := range f.snapshots {
			if s.Name != name || s.seen.deleted {
				continue
			}
			if s.SourceVolumeID != sourceVolumeID {
				return blockdev.ErrExists
			}
			snapshot = s.now()
			return nil
		}
		v := f.look(sourceVolumeID)
		if v == nil {
			return blockdev.ErrNotFound
		}
		f.made++
		now := time.Now()
		s := &fakeSnapshot{
			VolumeSnapshot: blockdev.VolumeSnapshot{
				ID: fmt.Sprintf("snap-%d", f.made), Name: name, SourceVolumeID: v.ID, SizeBytes: v.SizeBytes, Created: now,
			},
			content: slices.Clone(v.content), ready: now.Add(f.draw(f.wrong.ReadyAfter, "ready", name)), seen: f.newVisibility(name),
		}
		f.snapshots[s.ID], snapshot = s, s.now()
		return nil
	})
	return snapshot, err
}

// DeleteVolumeSnapshot deletes a snapshot.
func (f *Fake) DeleteVolumeSnapshot(ctx context.Context, snapshotID string) error {
	return f.do(ctx, "DeleteVolumeSnapshot", snapshotID, func() error {
		if s := f.snapshots[snapshotID]; s != nil {
			f.delete(&s.seen, s.Name)
		}
		return nil
	})
}

// GetVolumeSnapshot finds a snapshot.
func (f *Fake) GetVolumeSnapshot(ctx context.Context, snapshotID string) (snapshot blockdev.VolumeSnapshot, err error) {
	err = f.do(ctx, "GetVolumeSnapshot", snapshotID, func() error {
		s := f.snapshots[snapshotID]
		if s == nil || !s.seen.at(time.Now()) {
			return blockdev.ErrNotFound
		}
		snapshot = s.now()
		return nil
	})
	return snapshot, err
}

// ListVolumeSnapshots lists snapshots by ID.
func (f *Fake) ListVolumeSnapshots(ctx context.Context) (list []blockdev.VolumeSnapshot, err error) {
	err = f.do(ctx, "ListVolumeSnapshots", "", func() error {
		for _, id := range slices.Sorted(maps.Keys(f.snapshots)) {
			if s := f.snapshots[id]; s.seen.at(time.Now()) {
				list = append(list, s.now())
			}
		}
		return nil
	})
	return list, err
}

// Inventory is what there really is in a Fake, whatever calls see of it.
type Inventory struct {
	Volumes   []blockdev.Volume
	Snapshots []blockdev.VolumeSnapshot
	// Attached volumes by ID.
	Attached []string
}

// Inventory counts without being a call: nothing misbehaves, and nothing is noted.
func (f *Fake) Inventory() (all Inventory) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finish(time.Now())
	for _, id := range slices.Sorted(maps.Keys(f.volumes)) {
		if v := f.volumes[id]; !v.seen.deleted {
			all.Volumes = append(all.Volumes, v.Volume)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(f.snapshots)) {
		if s := f.snapshots[id]; !s.seen.deleted {
			all.Snapshots = append(all.Snapshots, s.now())
		}
	}
	all.Attached = slices.Sorted(maps.Keys(f.attached))
	return all
}

// SnapshotContent is what a volume snapshot holds, however little calls see of it; nil if there is none of this ID.
func (f *Fake) SnapshotContent(snapshotID string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.snapshots[snapshotID]; s != nil && !s.seen.deleted {
		return s.content
	}
	return nil
}

// Discard deletes a volume snapshot as somebody else does, behind the back of whoever made it.
func (f *Fake) Discard(snapshotID string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.snapshots[snapshotID]; s != nil {
		f.delete(&s.seen, s.Name)
	}
}
