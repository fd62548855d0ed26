package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
)

const (
	// settleWait is how long a storage may take until all its parts know of a volume: EC2 tells clients to be ready for
	// five minutes (docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html).
	settleWait = 5 * time.Minute
	// firstLook and lastLook are the waits between two looks for such a volume.
	firstLook = time.Second
	lastLook  = 16 * time.Second
)

// create makes the volume of a disk that is on a volume snapshot. A repetition finds the volume by its name.
func (s *raising) create(ctx context.Context, d *disk, driver blockdev.Attacher) error {
	rec := s.shared.record(d)
	if rec.Spec.VolumeSnapshotID == "" || rec.VolumeID != "" {
		return nil
	}
	provisioner, ok := driver.(blockdev.Provisioner)
	if !ok {
		return fmt.Errorf("make volume of %s: driver %s cannot make volumes: %w", rec.Spec.VolumeSnapshotID, rec.Spec.Driver, blockdev.ErrUnsupported)
	}
	unclear := !rec.Asked.IsZero() // a process before this one may have made it
	if err := s.shared.put(d, func(rec *record) { rec.Step, rec.Asked = StateCreating, time.Now() }); err != nil {
		return err
	}
	var volume blockdev.Volume
	err := s.shared.observed(StepCreate, func() (err error) {
		volume, err = makeVolume(ctx, provisioner, rec)
		return err
	})
	if err != nil {
		unclear = unclear || !refused(err) || errors.Is(err, blockdev.ErrMayBeDone)
		err = fmt.Errorf("make volume %s of %s: %w", rec.VolumeName, rec.Spec.source(), err)
		if !unclear {
			err = errors.Join(err, s.shared.put(d, func(rec *record) { rec.Asked = time.Time{} }))
		}
		return err
	}
	return s.shared.put(d, func(rec *record) { rec.VolumeID = volume.ID })
}

func makeVolume(ctx context.Context, provisioner blockdev.Provisioner, rec record) (blockdev.Volume, error) {
	return provisioner.CreateVolume(ctx, blockdev.CreateVolumeRequest{Name: rec.VolumeName, SourceVolumeSnapshotID: rec.Spec.VolumeSnapshotID})
}

// refused says whether an error means that the storage has not made the volume and will not. After any other error it
// may have.
func refused(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsAlreadyExists(err) || errdefs.IsResourceExhausted(err) ||
		errdefs.IsNotImplemented(err) || errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err)
}

// attachMade attaches the volume. If the storage does not know one that was made here, it may not know it yet, or it is
// gone: asking for it by its name again gives the one or another.
func (s *raising) attachMade(ctx context.Context, d *disk, driver blockdev.Attacher) (blockdev.Device, error) {
	end := time.Now().Add(settleWait)
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		dev, err := s.attach(ctx, d, driver)
		if s.shared.record(d).Spec.VolumeSnapshotID == "" || !errors.Is(err, blockdev.ErrNotFound) || time.Now().After(end) {
			return dev, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return dev, errors.Join(err, ctx.Err())
		}
		if err := s.shared.put(d, func(rec *record) { rec.Step, rec.VolumeID, rec.AttachBegun = StateCreating, "", false }); err != nil {
			return dev, err
		}
		if err := s.create(ctx, d, driver); err != nil {
			return dev, err
		}
	}
}

// madeVolume finds the volume that create made, also if its ID never came to the journal; empty if there is none. A
// list that lacks it proves nothing, because storages list new volumes late. What makes volumes knows those of each
// name.
func madeVolume(ctx context.Context, provisioner blockdev.Provisioner, rec record) (string, error) {
	if rec.VolumeID != "" || rec.Asked.IsZero() {
		return rec.VolumeID, nil
	}
	volumes, err := provisioner.ListVolumes(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range volumes {
		if v.Name == rec.VolumeName {
			return v.ID, nil
		}
	}
	v, err := makeVolume(ctx, provisioner, rec)
	switch {
	case err == nil:
		return v.ID, nil
	case !refused(err):
		return "", err
	case time.Since(rec.Asked) < settleWait:
		return "", fmt.Errorf("it may still appear, and is looked for until %s: %w",
			rec.Asked.Add(settleWait).UTC().Format(time.TimeOnly), blockdev.ErrNotReady)
	}
	return "", nil
}
