package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.dev/berth/blockdev"
)

// volumeSnapshotRecord is a volume snapshot that was asked for here, as the driver last told. Without an ID it is not
// known whether it was made.
type volumeSnapshotRecord struct {
	Name           string    `json:"name"`
	SourceVolumeID string    `json:"sourceVolumeID"`
	ID             string    `json:"id,omitempty"`
	SizeBytes      int64     `json:"sizeBytes,omitempty"`
	Created        time.Time `json:"created,omitzero"`
	Ready          bool      `json:"ready,omitempty"`
}

func (r volumeSnapshotRecord) snapshot() blockdev.VolumeSnapshot {
	return blockdev.VolumeSnapshot{ID: r.ID, Name: r.Name, SourceVolumeID: r.SourceVolumeID, SizeBytes: r.SizeBytes, Created: r.Created, ReadyToUse: r.Ready}
}

// snapshotter makes, finds and deletes volume snapshots.
type volumeSnapshotter struct {
	c         *connection
	snapshots store[volumeSnapshotRecord]
}

func volumeSnapshotKey(name string) string { return "volume snapshot named " + name }

// CreateVolumeSnapshot returns as soon as the CSI driver does; whether the volume snapshot is ready, GetVolumeSnapshot
// tells.
func (d *volumeSnapshotter) CreateVolumeSnapshot(ctx context.Context, name, sourceVolumeID string) (blockdev.VolumeSnapshot, error) {
	var snapshot blockdev.VolumeSnapshot
	err := checkName("volume snapshot", name)
	if err == nil {
		err = d.c.keys.Do(ctx, volumeSnapshotKey(name), func() (err error) {
			snapshot, err = d.createVolumeSnapshot(ctx, name, sourceVolumeID)
			return err
		})
	}
	if err != nil {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("create volume snapshot %s: %w", name, err)
	}
	return snapshot, nil
}

func (d *volumeSnapshotter) createVolumeSnapshot(ctx context.Context, name, volumeID string) (blockdev.VolumeSnapshot, error) {
	p, err := d.c.connect(ctx)
	if err != nil {
		return blockdev.VolumeSnapshot{}, err
	}
	if !p.snapshots {
		return blockdev.VolumeSnapshot{}, p.unsupported("it has no volume snapshots")
	}
	rec, found, err := d.snapshots.get(name)
	if err == nil && !found {
		rec = volumeSnapshotRecord{Name: name, SourceVolumeID: volumeID}
		err = d.snapshots.put(name, rec)
	}
	if err != nil {
		return blockdev.VolumeSnapshot{}, err
	}
	// About a name that is taken by a volume snapshot of another volume, the CSI driver decides.
	return d.makeVolumeSnapshot(ctx, rec, volumeID)
}

// makeVolumeSnapshot asks for the volume snapshot of a record. An answer that says it was not made forgets the record.
func (d *volumeSnapshotter) makeVolumeSnapshot(ctx context.Context, rec volumeSnapshotRecord, volumeID string) (blockdev.VolumeSnapshot, error) {
	secrets, err := readSecrets(d.c.config.Secrets.VolumeSnapshot)
	if err != nil {
		return blockdev.VolumeSnapshot{}, err
	}
	resp, err := call(ctx, d.c.controller, making, "CreateSnapshot", csi.NewControllerClient(d.c.controller.conn).CreateSnapshot,
		&csi.CreateSnapshotRequest{Name: rec.Name, SourceVolumeId: volumeID, Parameters: d.c.config.VolumeSnapshotParameters, Secrets: secrets})
	if err != nil {
		d.c.forget(err)
		if !blockdev.Retryable(err) && ctx.Err() == nil && rec.ID == "" && rec.SourceVolumeID == volumeID {
			err = errors.Join(err, d.snapshots.remove(rec.Name))
		}
		return blockdev.VolumeSnapshot{}, err
	}
	s := resp.GetSnapshot()
	if s.GetSnapshotId() == "" {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("CreateSnapshot: the answer has no snapshot ID: %w", blockdev.ErrFailed)
	}
	out := volumeSnapshotRecord{Name: rec.Name, SourceVolumeID: volumeID}.join(s)
	return out, d.snapshots.put(rec.Name, volumeSnapshotRecord{
		ID: out.ID, Name: rec.Name, SourceVolumeID: volumeID, SizeBytes: out.SizeBytes, Created: out.Created, Ready: out.ReadyToUse,
	})
}

// recordOf finds the record of a snapshot by its ID.
func (d *volumeSnapshotter) recordOf(snapshotID string) (volumeSnapshotRecord, bool, error) {
	all, err := d.snapshots.all()
	if err != nil {
		return volumeSnapshotRecord{}, false, err
	}
	for _, rec := range all {
		if rec.ID == snapshotID {
			return rec, true, nil
		}
	}
	return volumeSnapshotRecord{}, false, nil
}

// join joins what the driver says with the name, which only we know.
func (r volumeSnapshotRecord) join(s *csi.Snapshot) blockdev.VolumeSnapshot {
	out := blockdev.VolumeSnapshot{
		ID: s.GetSnapshotId(), Name: r.Name, SourceVolumeID: cmp.Or(s.GetSourceVolumeId(), r.SourceVolumeID),
		SizeBytes: s.GetSizeBytes(), ReadyToUse: s.GetReadyToUse(),
	}
	if s.GetCreationTime() != nil {
		out.Created = s.GetCreationTime().AsTime()
	}
	return out
}

// DeleteVolumeSnapshot deletes a volume snapshot of the CSI driver, made here or not.
func (d *volumeSnapshotter) DeleteVolumeSnapshot(ctx context.Context, snapshotID string) error {
	rec, found, err := d.recordOf(snapshotID)
	key := snapshotID
	if found {
		key = volumeSnapshotKey(rec.Name)
	}
	if err == nil {
		err = d.c.keys.Do(ctx, key, func() error { return d.deleteVolumeSnapshot(ctx, snapshotID, rec.Name) })
	}
	if err != nil {
		return fmt.Errorf("delete volume snapshot %s: %w", snapshotID, err)
	}
	return nil
}

// deleteVolumeSnapshot also forgets the record of that name, if it has one.
func (d *volumeSnapshotter) deleteVolumeSnapshot(ctx context.Context, snapshotID, name string) error {
	p, err := d.c.connect(ctx)
	if err != nil || snapshotID == "" {
		return err
	}
	if !p.snapshots {
		return p.unsupported("it has no volume snapshots")
	}
	secrets, err := readSecrets(d.c.config.Secrets.VolumeSnapshot)
	if err != nil {
		return err
	}
	_, err = call(ctx, d.c.controller, asking, "DeleteSnapshot", csi.NewControllerClient(d.c.controller.conn).DeleteSnapshot,
		&csi.DeleteSnapshotRequest{SnapshotId: snapshotID, Secrets: secrets})
	if err != nil && !errors.Is(err, blockdev.ErrNotFound) {
		d.c.forget(err)
		return err
	}
	if name == "" {
		return nil
	}
	return d.snapshots.remove(name)
}

// GetVolumeSnapshot finds a volume snapshot by its ID. A driver that can neither list nor get snapshots can only be
// asked about those made here, by asking again to make them until they are ready: later that would bring back one that
// others deleted.
func (d *volumeSnapshotter) GetVolumeSnapshot(ctx context.Context, snapshotID string) (blockdev.VolumeSnapshot, error) {
	p, err := d.c.connect(ctx)
	var s blockdev.VolumeSnapshot
	if err == nil {
		s, err = d.findVolumeSnapshot(ctx, p, snapshotID)
	}
	if err != nil {
		return blockdev.VolumeSnapshot{}, fmt.Errorf("get volume snapshot %s: %w", snapshotID, err)
	}
	return s, nil
}

func (d *volumeSnapshotter) findVolumeSnapshot(ctx context.Context, p *plugin, snapshotID string) (blockdev.VolumeSnapshot, error) {
	if snapshotID == "" {
		return blockdev.VolumeSnapshot{}, blockdev.ErrNotFound
	}
	rec, found, err := d.recordOf(snapshotID)
	switch {
	case err != nil:
		return blockdev.VolumeSnapshot{}, err
	case p.getSnapshot:
		secrets, err := readSecrets(d.c.config.Secrets.VolumeSnapshot)
		if err != nil {
			return blockdev.VolumeSnapshot{}, err
		}
		resp, err := call(ctx, d.c.controller, asking, "GetSnapshot", csi.NewControllerClient(d.c.controller.conn).GetSnapshot,
			&csi.GetSnapshotRequest{SnapshotId: snapshotID, Secrets: secrets})
		d.c.forget(err)
		return rec.join(resp.GetSnapshot()), err
	case p.listSnapshots:
		all, err := d.listVolumeSnapshots(ctx, snapshotID)
		if err != nil {
			return blockdev.VolumeSnapshot{}, err
		}
		for _, s := range all {
			if s.GetSnapshotId() == snapshotID {
				return rec.join(s), nil
			}
		}
		return blockdev.VolumeSnapshot{}, blockdev.ErrNotFound
	case !p.snapshots:
		return blockdev.VolumeSnapshot{}, p.unsupported("it has no volume snapshots")
	case !found:
		return blockdev.VolumeSnapshot{}, p.unsupported("it tells only of snapshots that were made here")
	case rec.Ready:
		return rec.snapshot(), nil
	}
	return d.askAgain(ctx, rec.Name)
}

// askAgain repeats the request to create a volume snapshot that was not ready; the answer has its present state.
func (d *volumeSnapshotter) askAgain(ctx context.Context, name string) (s blockdev.VolumeSnapshot, err error) {
	err = d.c.keys.Do(ctx, volumeSnapshotKey(name), func() error {
		rec, found, err := d.snapshots.get(name)
		if err == nil && !found {
			err = blockdev.ErrNotFound // deleted meanwhile: it must not come back
		}
		if err == nil {
			s, err = d.makeVolumeSnapshot(ctx, rec, rec.SourceVolumeID)
		}
		return err
	})
	return s, err
}

// sizeOf returns the size of a volume snapshot that volumes can be made from, 0 if the driver does not report it.
func (d *volumeSnapshotter) sizeOf(ctx context.Context, p *plugin, snapshotID string) (int64, error) {
	s, err := d.findVolumeSnapshot(ctx, p, snapshotID)
	if errors.Is(err, blockdev.ErrUnsupported) {
		return 0, nil
	}
	if err == nil && !s.ReadyToUse {
		err = blockdev.ErrNotReady
	}
	if err != nil {
		return 0, fmt.Errorf("volume snapshot %s: %w", snapshotID, err)
	}
	return s.SizeBytes, nil
}

func (d *volumeSnapshotter) listVolumeSnapshots(ctx context.Context, snapshotID string) ([]*csi.Snapshot, error) {
	secrets, err := readSecrets(d.c.config.Secrets.VolumeSnapshot)
	if err != nil {
		return nil, err
	}
	client := csi.NewControllerClient(d.c.controller.conn)
	var all []*csi.Snapshot
	err = pages(func(token string) (string, error) {
		resp, err := call(ctx, d.c.controller, asking, "ListSnapshots", client.ListSnapshots,
			&csi.ListSnapshotsRequest{MaxEntries: pageEntries, StartingToken: token, SnapshotId: snapshotID, Secrets: secrets})
		for _, e := range resp.GetEntries() {
			all = append(all, e.GetSnapshot())
		}
		return resp.GetNextToken(), err
	})
	d.c.forget(err)
	return all, err
}

// ListVolumeSnapshots lists what the CSI driver lists, and if it cannot do that, what was made here. Snapshots whose
// making was interrupted are made for it: only so their IDs can be known.
func (d *volumeSnapshotter) ListVolumeSnapshots(ctx context.Context) ([]blockdev.VolumeSnapshot, error) {
	list, err := d.allVolumeSnapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	slices.SortFunc(list, func(a, b blockdev.VolumeSnapshot) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

func (d *volumeSnapshotter) allVolumeSnapshots(ctx context.Context) ([]blockdev.VolumeSnapshot, error) {
	p, err := d.c.connect(ctx)
	if err != nil {
		return nil, err
	}
	if !p.snapshots {
		return nil, p.unsupported("it has no volume snapshots")
	}
	records, err := d.finish(ctx)
	if err != nil {
		return nil, err
	}
	var list []blockdev.VolumeSnapshot
	if p.listSnapshots {
		all, err := d.listVolumeSnapshots(ctx, "")
		for _, s := range all {
			list = append(list, records[s.GetSnapshotId()].join(s))
		}
		return list, err
	}
	for id := range records {
		s, err := d.findVolumeSnapshot(ctx, p, id)
		if errors.Is(err, blockdev.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// finish learns the IDs of snapshots whose making was interrupted, and returns all records by ID.
func (d *volumeSnapshotter) finish(ctx context.Context) (map[string]volumeSnapshotRecord, error) {
	all, err := d.snapshots.all()
	if err != nil {
		return nil, err
	}
	byID := make(map[string]volumeSnapshotRecord, len(all))
	for _, rec := range all {
		if rec.ID == "" {
			if rec, err = d.finishOne(ctx, rec.Name); err != nil {
				return nil, err
			}
		}
		if rec.ID != "" {
			byID[rec.ID] = rec
		}
	}
	return byID, nil
}

func (d *volumeSnapshotter) finishOne(ctx context.Context, name string) (rec volumeSnapshotRecord, err error) {
	err = d.c.keys.Do(ctx, volumeSnapshotKey(name), func() error {
		var found bool
		if rec, found, err = d.snapshots.get(name); err != nil || !found || rec.ID != "" {
			return err
		}
		made, err := d.makeVolumeSnapshot(ctx, rec, rec.SourceVolumeID)
		rec.ID = made.ID
		if err != nil && !blockdev.Retryable(err) && ctx.Err() == nil {
			return nil // then there is none
		}
		return err
	})
	if err != nil {
		return rec, fmt.Errorf("find out whether volume snapshot %s was made: %w", name, err)
	}
	return rec, nil
}
