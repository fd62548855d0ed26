package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.dev/berth/blockdev"
)

// finder finds volumes, and the records of those made here.
type finder struct {
	c       *connection
	volumes store[volumeRecord]
}

// GetVolume asks the CSI driver for the volume, in the cheapest way that it has.
func (d *provisioner) GetVolume(ctx context.Context, volumeID string) (blockdev.Volume, error) {
	p, err := d.c.connect(ctx)
	var v blockdev.Volume
	if err == nil {
		v, err = d.find.findVolume(ctx, p, volumeID)
	}
	if err != nil {
		return blockdev.Volume{}, fmt.Errorf("get volume %s: %w", volumeID, err)
	}
	return v, nil
}

func (d *finder) findVolume(ctx context.Context, p *plugin, volumeID string) (blockdev.Volume, error) {
	if volumeID == "" {
		return blockdev.Volume{}, blockdev.ErrNotFound
	}
	rec, _, err := d.recordOf(volumeID)
	if err != nil {
		return blockdev.Volume{}, err
	}
	switch {
	case p.getVolume:
		v, err := d.askVolume(ctx, volumeID)
		return merge(v, rec), err
	case p.listVolumes:
		all, err := d.listAll(ctx)
		if err != nil {
			return blockdev.Volume{}, err
		}
		for _, v := range all {
			if v.GetVolumeId() == volumeID {
				return merge(v, rec), nil
			}
		}
		return blockdev.Volume{}, blockdev.ErrNotFound
	}
	if err := d.validate(ctx, volumeID, rec.Context); err != nil {
		return blockdev.Volume{}, err
	}
	return merge(&csi.Volume{VolumeId: volumeID}, rec), nil
}

func (d *finder) askVolume(ctx context.Context, volumeID string) (*csi.Volume, error) {
	resp, err := call(ctx, d.c.controller, asking, "ControllerGetVolume", csi.NewControllerClient(d.c.controller.conn).ControllerGetVolume,
		&csi.ControllerGetVolumeRequest{VolumeId: volumeID})
	d.c.forget(err)
	return resp.GetVolume(), err
}

// validate asks whether a volume can be used as a block device, the one question about volumes that every driver with a
// controller answers: NotFound if there is none.
func (d *finder) validate(ctx context.Context, volumeID string, volumeContext map[string]string) error {
	secrets, err := readSecrets(d.c.config.Secrets.Provision)
	if err != nil {
		return err
	}
	_, err = call(ctx, d.c.controller, asking, "ValidateVolumeCapabilities", csi.NewControllerClient(d.c.controller.conn).ValidateVolumeCapabilities,
		&csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: volumeID, VolumeContext: volumeContext, VolumeCapabilities: []*csi.VolumeCapability{capability()}, Secrets: secrets,
		})
	d.c.forget(err)
	return err
}

// merge joins what the driver says with what only we know.
func merge(v *csi.Volume, rec volumeRecord) blockdev.Volume {
	return blockdev.Volume{
		ID: v.GetVolumeId(), Name: rec.Name,
		SizeBytes:              cmp.Or(v.GetCapacityBytes(), rec.CapacityBytes, rec.SizeBytes),
		SourceVolumeSnapshotID: cmp.Or(v.GetContentSource().GetSnapshot().GetSnapshotId(), rec.SourceSnapshotID),
	}
}

// ListVolumes lists what the CSI driver lists, and if it cannot do that, what was made here. Volumes whose making was
// interrupted are made for it: only so their IDs can be known.
func (d *provisioner) ListVolumes(ctx context.Context) ([]blockdev.Volume, error) {
	list, err := d.listVolumes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	slices.SortFunc(list, func(a, b blockdev.Volume) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

func (d *provisioner) listVolumes(ctx context.Context) ([]blockdev.Volume, error) {
	p, err := d.c.connect(ctx)
	if err != nil {
		return nil, err
	}
	records, err := d.finish(ctx, p)
	if err != nil {
		return nil, err
	}
	var list []blockdev.Volume
	if p.listVolumes {
		all, err := d.find.listAll(ctx)
		for _, v := range all {
			list = append(list, merge(v, records[v.GetVolumeId()]))
		}
		return list, err
	}
	for id := range records {
		v, err := d.find.findVolume(ctx, p, id)
		if errors.Is(err, blockdev.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// finish learns the IDs of volumes whose making was interrupted, and returns all records by ID.
func (d *provisioner) finish(ctx context.Context, p *plugin) (map[string]volumeRecord, error) {
	all, err := d.find.volumes.all()
	if err != nil {
		return nil, err
	}
	byID := make(map[string]volumeRecord, len(all))
	for _, rec := range all {
		if rec.ID == "" {
			if rec, err = d.finishOne(ctx, p, rec.Name); err != nil {
				return nil, err
			}
		}
		if rec.ID != "" {
			byID[rec.ID] = rec
		}
	}
	return byID, nil
}

func (d *provisioner) finishOne(ctx context.Context, p *plugin, name string) (rec volumeRecord, err error) {
	err = d.c.keys.Do(ctx, nameKey(name), func() error {
		var found bool
		if rec, found, err = d.find.volumes.get(name); err != nil || !found || rec.ID != "" {
			return err
		}
		made, err := d.makeVolume(ctx, p, rec)
		if err == nil {
			rec = made
		}
		if err != nil && !blockdev.Retryable(err) && ctx.Err() == nil {
			return nil // then there is none
		}
		return err
	})
	if err != nil {
		return rec, fmt.Errorf("find out whether volume %s was made: %w", name, err)
	}
	return rec, nil
}

func (d *finder) listAll(ctx context.Context) ([]*csi.Volume, error) {
	client := csi.NewControllerClient(d.c.controller.conn)
	var all []*csi.Volume
	err := pages(func(token string) (string, error) {
		resp, err := call(ctx, d.c.controller, asking, "ListVolumes", client.ListVolumes,
			&csi.ListVolumesRequest{MaxEntries: pageEntries, StartingToken: token})
		for _, e := range resp.GetEntries() {
			all = append(all, e.GetVolume())
		}
		return resp.GetNextToken(), err
	})
	d.c.forget(err)
	return all, err
}
