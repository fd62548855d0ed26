package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.dev/berth/blockdev"
)

// volumeRecord is a volume that was asked for here. Without an ID it is not known whether it was made.
type volumeRecord struct {
	Name             string `json:"name"`
	SizeBytes        int64  `json:"sizeBytes,omitempty"`
	SourceSnapshotID string `json:"sourceSnapshotID,omitempty"`
	// Parameters besides those of the configuration.
	Parameters map[string]string `json:"parameters,omitempty"`
	// What the driver answered.
	ID            string            `json:"id,omitempty"`
	CapacityBytes int64             `json:"capacityBytes,omitempty"`
	Context       map[string]string `json:"context,omitempty"`
}

func (r volumeRecord) volume() blockdev.Volume {
	return blockdev.Volume{ID: r.ID, Name: r.Name, SizeBytes: cmp.Or(r.CapacityBytes, r.SizeBytes), SourceVolumeSnapshotID: r.SourceSnapshotID}
}

// provisioner makes, lists and deletes volumes.
type provisioner struct {
	c           *connection
	find        *finder
	snapshots   *volumeSnapshotter
	attachments store[attachment]
}

// maxNameBytes is the spec's limit.
const maxNameBytes = 128

func checkName(kind, name string) error {
	if name == "" || len(name) > maxNameBytes {
		return fmt.Errorf("%s name %q: want 1 to %d bytes: %w", kind, name, maxNameBytes, blockdev.ErrInvalid)
	}
	return nil
}

func nameKey(name string) string { return "volume named " + name }

// CreateVolume makes a volume for block use on this node. A volume of the name that was made here with other parameters
// is ErrExists; about others, the CSI driver decides.
func (d *provisioner) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	var volume blockdev.Volume
	err := checkName("volume", req.Name)
	if err == nil && (req.SizeBytes < 0 || req.SizeBytes == 0 && req.SourceVolumeSnapshotID == "") {
		err = fmt.Errorf("size of %d bytes: %w", req.SizeBytes, blockdev.ErrInvalid)
	}
	if err == nil {
		err = d.c.keys.Do(ctx, nameKey(req.Name), func() (err error) {
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
	p, err := d.c.connect(ctx)
	if err != nil {
		return blockdev.Volume{}, err
	}
	if !p.volumes {
		return blockdev.Volume{}, p.unsupported("it makes no volumes")
	}
	if req.SourceVolumeSnapshotID != "" && !p.snapshots {
		return blockdev.Volume{}, p.unsupported("it has no volume snapshots")
	}
	if v, err := d.known(ctx, p, req); err != nil || v.ID != "" {
		return v, err
	}
	if req.SourceVolumeSnapshotID != "" && req.SizeBytes == 0 {
		if req.SizeBytes, err = d.snapshots.sizeOf(ctx, p, req.SourceVolumeSnapshotID); err != nil {
			return blockdev.Volume{}, err
		}
	}
	rec := volumeRecord{Name: req.Name, SizeBytes: req.SizeBytes, SourceSnapshotID: req.SourceVolumeSnapshotID, Parameters: req.Parameters}
	have, found, err := d.find.volumes.get(req.Name)
	if err == nil && found {
		rec, err = d.compare(ctx, p, have, rec)
	}
	if err == nil && rec.ID == "" {
		err = d.find.volumes.put(req.Name, rec)
	}
	if err != nil {
		return blockdev.Volume{}, err
	}
	rec, err = d.makeVolume(ctx, p, rec)
	return rec.volume(), err
}

// known finds the volume if it was made here before: its snapshot may have gone since.
func (d *provisioner) known(ctx context.Context, p *plugin, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	have, found, err := d.find.volumes.get(req.Name)
	if err != nil || !found || have.ID == "" || have.SourceSnapshotID != req.SourceVolumeSnapshotID || req.SizeBytes != 0 && req.SizeBytes != have.SizeBytes {
		return blockdev.Volume{}, err
	}
	v, err := d.find.findVolume(ctx, p, have.ID)
	if errors.Is(err, blockdev.ErrNotFound) {
		return blockdev.Volume{}, nil
	}
	return v, err
}

// compare says which record holds: the one there is, or the wanted one if there is no volume of the other.
func (d *provisioner) compare(ctx context.Context, p *plugin, have, want volumeRecord) (volumeRecord, error) {
	same := have.SizeBytes == want.SizeBytes && have.SourceSnapshotID == want.SourceSnapshotID
	if same {
		return have, nil
	}
	if have.ID == "" {
		var err error
		if have, err = d.makeVolume(ctx, p, have); err != nil && blockdev.Retryable(err) {
			return have, err // it may be there
		}
	}
	if have.ID != "" {
		_, err := d.find.findVolume(ctx, p, have.ID)
		if err == nil {
			return have, fmt.Errorf("it has %d bytes and source %q: %w", have.SizeBytes, have.SourceSnapshotID, blockdev.ErrExists)
		}
		if !errors.Is(err, blockdev.ErrNotFound) {
			return have, err
		}
	}
	return want, nil
}

// makeVolume asks for the volume of a record. An answer that says it was not made forgets the record.
func (d *provisioner) makeVolume(ctx context.Context, p *plugin, rec volumeRecord) (volumeRecord, error) {
	secrets, err := readSecrets(d.c.config.Secrets.Provision)
	if err != nil {
		return rec, err
	}
	req := &csi.CreateVolumeRequest{
		Name: rec.Name, Parameters: d.c.config.volumeParameters(rec), Secrets: secrets,
		VolumeCapabilities: []*csi.VolumeCapability{capability()}, AccessibilityRequirements: p.where(),
	}
	if rec.SizeBytes > 0 {
		req.CapacityRange = &csi.CapacityRange{RequiredBytes: rec.SizeBytes}
	}
	if rec.SourceSnapshotID != "" {
		req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: rec.SourceSnapshotID},
		}}
	}
	resp, err := call(ctx, d.c.controller, making, "CreateVolume", csi.NewControllerClient(d.c.controller.conn).CreateVolume, req)
	if err != nil {
		d.c.forget(err)
		if !blockdev.Retryable(err) && ctx.Err() == nil && rec.ID == "" {
			err = errors.Join(err, d.find.volumes.remove(rec.Name))
		}
		return rec, err
	}
	v := resp.GetVolume()
	rec.ID, rec.CapacityBytes, rec.Context = v.GetVolumeId(), v.GetCapacityBytes(), v.GetVolumeContext()
	if rec.ID == "" {
		return rec, fmt.Errorf("CreateVolume: the answer has no volume ID: %w", blockdev.ErrFailed)
	}
	if err := d.find.volumes.put(rec.Name, rec); err != nil {
		return rec, err
	}
	return rec, d.checkMade(ctx, p, rec, v)
}

// checkMade refuses a volume that is not what was asked for. One that lacks the snapshot's content is deleted, because
// nobody could tell it from an empty one later.
func (d *provisioner) checkMade(ctx context.Context, p *plugin, rec volumeRecord, v *csi.Volume) error {
	if got := v.GetContentSource().GetSnapshot().GetSnapshotId(); got != rec.SourceSnapshotID {
		err := fmt.Errorf("driver %s made volume %s from volume snapshot %q instead of %q: %w", p.name, rec.ID, got, rec.SourceSnapshotID, blockdev.ErrUnsupported)
		return errors.Join(err, d.deleteVolume(ctx, rec.ID))
	}
	if rec.CapacityBytes > 0 && rec.CapacityBytes < rec.SizeBytes {
		err := fmt.Errorf("driver %s made volume %s with %d bytes instead of %d: %w", p.name, rec.ID, rec.CapacityBytes, rec.SizeBytes, blockdev.ErrFailed)
		return errors.Join(err, d.deleteVolume(ctx, rec.ID))
	}
	return nil
}

// DeleteVolume deletes a volume of the CSI driver, made here or not.
func (d *provisioner) DeleteVolume(ctx context.Context, volumeID string) error {
	err := d.c.keys.Do(ctx, volumeID, func() error {
		if volumeID == "" {
			return nil // there is none
		}
		_, attached, err := d.attachments.get(volumeID)
		if err == nil && attached {
			err = fmt.Errorf("it is attached: %w", blockdev.ErrInUse)
		}
		if err != nil {
			return err
		}
		p, err := d.c.connect(ctx)
		if err != nil {
			return err
		}
		if !p.volumes {
			return p.unsupported("it deletes no volumes")
		}
		return d.deleteVolume(ctx, volumeID)
	})
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", volumeID, err)
	}
	return nil
}

func (d *provisioner) deleteVolume(ctx context.Context, volumeID string) error {
	secrets, err := readSecrets(d.c.config.Secrets.Provision)
	if err != nil {
		return err
	}
	_, err = call(ctx, d.c.controller, asking, "DeleteVolume", csi.NewControllerClient(d.c.controller.conn).DeleteVolume,
		&csi.DeleteVolumeRequest{VolumeId: volumeID, Secrets: secrets})
	if err != nil && !errors.Is(err, blockdev.ErrNotFound) {
		d.c.forget(err)
		return err
	}
	rec, found, err := d.find.recordOf(volumeID)
	if err != nil || !found {
		return err
	}
	return d.find.volumes.remove(rec.Name)
}

// recordOf finds the record of a volume by its ID.
func (d *finder) recordOf(volumeID string) (volumeRecord, bool, error) {
	all, err := d.volumes.all()
	if err != nil {
		return volumeRecord{}, false, err
	}
	for _, rec := range all {
		if rec.ID == volumeID {
			return rec, true, nil
		}
	}
	return volumeRecord{}, false, nil
}
