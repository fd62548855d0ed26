package stage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
)

// raising makes a disk usable. The caller holds the disk's key.
type raising struct {
	*state
	shared shared
	// minRate is Config.MinRate.
	minRate int64
}

// raise makes the disk usable: volume, device, proof, mount. It can be called at any time, whatever is there already.
// The caller holds the disk's key.
func (s *raising) raise(ctx context.Context, d *disk) error {
	driver, err := s.shared.driver(d)
	if err != nil {
		return err
	}
	if err := s.create(ctx, d, driver); err != nil {
		return err
	}
	dev, err := s.attachMade(ctx, d, driver)
	if err != nil {
		return err
	}
	p, err := s.prove(ctx, d, dev)
	if err == nil {
		err = s.pace(ctx, d, dev, p)
	}
	if err != nil {
		s.detachUnproved(ctx, d, driver)
		return err
	}
	if err := s.mount(ctx, d, dev, p); err != nil {
		return err
	}
	if err := s.shared.put(d, func(rec *record) { rec.Step = StateIdle }); err != nil {
		return err
	}
	s.raised(ctx, d, dev, p)
	return nil
}

func (s *raising) attach(ctx context.Context, d *disk, driver blockdev.Attacher) (blockdev.Device, error) {
	rec := s.shared.record(d)
	volumeID := rec.VolumeID
	if volumeID == "" {
		volumeID = rec.Spec.VolumeID
	}
	if !rec.AttachBegun {
		// Once our journal has the attachment, it is ours to give up. Others' must not become that.
		attached, err := driver.Attached(ctx)
		if err != nil {
			return blockdev.Device{}, fmt.Errorf("look whether volume %s is attached: %w", volumeID, err)
		}
		if dev, ok := attached[volumeID]; ok && !dev.ReadOnly {
			return blockdev.Device{}, fmt.Errorf("volume %s is attached for writing as %s, detach it first: %w", volumeID, dev.Path, blockdev.ErrInUse)
		}
	}
	err := s.shared.put(d, func(rec *record) {
		rec.Step, rec.VolumeID, rec.AttachBegun = StateAttaching, volumeID, true
	})
	if err != nil {
		return blockdev.Device{}, err
	}
	var dev blockdev.Device
	err = s.shared.observed(StepAttach, func() (err error) {
		dev, err = driver.Attach(ctx, volumeID, blockdev.AttachOptions{
			ReadOnly: true, Index: cmp.Or(rec.Identity.IndexDigest, rec.Spec.Expect.IndexDigest),
		})
		return err
	})
	if err != nil {
		return blockdev.Device{}, err // the driver says which volume
	}
	s.mu.Lock()
	d.device = dev.Path
	s.mu.Unlock()
	return dev, nil
}

// prove reads what is on the device and makes sure that it is the disk that is wanted and not staged already.
func (s *raising) prove(ctx context.Context, d *disk, dev blockdev.Device) (proof, error) {
	rec := s.shared.record(d)
	var p proof
	err := s.shared.observed(StepProve, func() error {
		var found proof
		err := await(ctx, func() (err error) {
			found, err = s.system.Prove(dev)
			return err
		})
		if err == nil {
			p = found // not touched if the wait ended first
		}
		return err
	})
	if err == nil {
		err = p.identity.Check(rec.Spec.Expect)
	}
	if err == nil {
		err = p.identity.Check(rec.Identity)
	}
	if err != nil {
		return proof{}, fmt.Errorf("prove that %s is the layer disk: %w", dev.Path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other, ok := s.fleet.claim(d, p.identity.UUID); !ok {
		return proof{}, fmt.Errorf("the same layer disk %s is staged already as disk %s: unstage that first, or use it: %w",
			p.identity.UUID, other.rec.Spec.Name, errdefs.ErrAlreadyExists)
	}
	return p, nil
}

// detachUnproved detaches a volume whose device did not prove to be the disk, so that the next attempt attaches it
// anew. Such a device may show less than the volume has, or be another volume's, for as long as it is attached. A
// device in use is left alone. The journal keeps the attachment as ours, so that lower detaches what stays attached
// here.
func (s *raising) detachUnproved(ctx context.Context, d *disk, driver blockdev.Attacher) {
	rec := s.shared.record(d)
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := driver.Detach(undo, rec.VolumeID); err != nil {
		log.G(ctx).WithError(err).WithField("disk", rec.Spec.Name).Debug("volume whose device is not the disk stays attached")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.device = ""
}

// errForeign says that something is mounted on our directory that we did not mount.
var errForeign = errors.New("something else is mounted there")

func (s *raising) mount(ctx context.Context, d *disk, dev blockdev.Device, p proof) error {
	err := s.mountJournalled(ctx, d, dev, p)
	if err != nil {
		s.mu.Lock()
		s.fleet.unclaim(d, p.identity.UUID)
		s.mu.Unlock()
	}
	return err
}

func (s *raising) mountJournalled(ctx context.Context, d *disk, dev blockdev.Device, p proof) error {
	adopt, number, err := s.makeRoom(d, p.number)
	if err != nil {
		return fmt.Errorf("look for a place to mount: %w", err)
	}
	err = s.shared.put(d, func(rec *record) {
		rec.Step, rec.Number = StateMounting, number
		rec.Device, rec.DeviceNumber, rec.BootID = dev.Path, p.number, s.boot
		rec.Identity = p.identity
	})
	if err != nil {
		return err
	}
	target := s.shared.record(d).target(s.root)
	return s.shared.observed(StepMount, func() error {
		if !adopt {
			if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("make directory to mount on: %w", err)
			}
			err := await(ctx, func() error { return s.system.Mount(dev.Path, target, fsmount.FileSystem(p.index.FileSystem)) })
			if err != nil {
				return err
			}
		}
		return await(ctx, func() error { return s.system.Verify(ctx, target, p.identity) })
	})
}

// makeRoom unmounts what we mounted of a device that the disk is not on any more. If the device itself is mounted there
// already, that mount is to be adopted. If others have mounted something there, another number is chosen.
func (s *raising) makeRoom(d *disk, wanted uint64) (adopt bool, number int, err error) {
	rec := s.shared.record(d)
	adopt, err = s.shared.clear(rec, wanted)
	if !errors.Is(err, errForeign) {
		return adopt, rec.Number, err
	}
	taken := make(map[int]bool)
	for {
		taken[rec.Number] = true
		s.mu.Lock()
		rec.Number = s.fleet.freeNumber(taken)
		s.mu.Unlock()
		mounts, err := s.system.At(rec.target(s.root))
		if err != nil {
			return false, 0, err
		}
		if len(mounts) == 0 {
			return false, rec.Number, nil
		}
	}
}

// clear unmounts our mounts on the disk's directory from the top, until nothing or a mount of the device wanted is
// there.
func (s shared) clear(rec record, wanted uint64) (adopt bool, err error) {
	target := rec.target(s.root)
	for {
		mounts, err := s.system.At(target)
		if err != nil || len(mounts) == 0 {
			return false, err
		}
		top := mounts[len(mounts)-1]
		switch {
		case wanted != 0 && top.Device == wanted && top.ReadOnly:
			return true, nil
		case !rec.mounted(top, s.boot):
			return false, fmt.Errorf("%s: %w: %s", target, errForeign, top.Source)
		}
		if err := s.system.Unmount(target); err != nil {
			return false, err
		}
	}
}

// raised puts the disk into service.
func (s *raising) raised(ctx context.Context, d *disk, dev blockdev.Device, p proof) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.lookup != nil {
		// The tables go by the lookup they were filled from.
		s.fleet.serving.remove(d)
		s.fleet.withheld.remove(d)
	}
	d.lookup = layerdisk.NewLookup(p.index)
	d.sizeBytes = p.sizeBytes
	d.up, d.upSince = true, time.Now()
	d.err, d.failures, d.retryAt, d.pendingSince = nil, 0, time.Time{}, time.Time{}
	s.fleet.updateTables(d)
	log.G(ctx).WithField("disk", d.rec.Spec.Name).WithField("uuid", p.identity.UUID).WithField("device", dev.Path).
		WithField("layers", len(p.index.Layers)).Info("layer disk is ready")
}
