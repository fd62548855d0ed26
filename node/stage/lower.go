package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/log"

	"berth.dev/berth/blockdev"
)

// lowering takes a disk off the node. The caller holds the disk's key.
type lowering struct {
	*state
	shared shared
}

// lower undoes raise, from whatever point it came to, and forgets the disk. The caller holds the disk's key and has
// made sure that nobody holds the disk.
func (s *lowering) lower(ctx context.Context, d *disk) error {
	s.mu.Lock()
	s.fleet.stopServing(d)
	s.mu.Unlock()
	err := s.shared.put(d, func(rec *record) { rec.Goal, rec.Step = goalGone, StateUnmounting })
	if err != nil {
		return err
	}
	if err := s.shared.observed(StepUnmount, func() error { return s.unmount(ctx, d) }); err != nil {
		return err
	}
	if err := s.detach(ctx, d); err != nil {
		return err
	}
	if err := s.delete(ctx, d); err != nil {
		return err
	}
	rec := s.shared.record(d)
	s.shared.failpoint("before forget")
	if err := s.journal.remove(rec.Spec.Name); err != nil {
		return err
	}
	s.shared.failpoint("after forget")
	s.mu.Lock()
	s.fleet.remove(d)
	s.mu.Unlock()
	log.G(ctx).WithField("disk", rec.Spec.Name).Info("layer disk has left")
	return nil
}

func (s *lowering) unmount(ctx context.Context, d *disk) error {
	if err := s.shared.awaitVisitors(ctx, d); err != nil {
		return err
	}
	rec := s.shared.record(d)
	err := await(ctx, func() error {
		_, err := s.shared.clear(rec, 0)
		return err
	})
	if errors.Is(err, errForeign) {
		return nil // it stays, and so does the directory
	}
	if err != nil {
		return err
	}
	// Never RemoveAll: whatever is in the directory is not ours.
	if err := os.Remove(rec.target(s.root)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove directory that was mounted on: %w", err)
	}
	return nil
}

func (s *lowering) detach(ctx context.Context, d *disk) error {
	rec := s.shared.record(d)
	if !rec.AttachBegun {
		return nil
	}
	driver, err := s.shared.driver(d)
	if err != nil {
		return err
	}
	if err := s.shared.put(d, func(rec *record) { rec.Step = StateDetaching }); err != nil {
		return err
	}
	err = s.shared.observed(StepDetach, func() error {
		return untilFree(ctx, func() error { return driver.Detach(ctx, rec.VolumeID) })
	})
	if err != nil {
		return fmt.Errorf("detach volume %s: %w", rec.VolumeID, err)
	}
	s.mu.Lock()
	d.device = ""
	s.mu.Unlock()
	return nil
}

// A container that starts copies all mounts of the node for a moment, also one that is unmounted here just then, and
// the device stays in use until the copy is gone.
const (
	freeWait = 2 * time.Second
	freePoll = 20 * time.Millisecond
)

// untilFree repeats detach while the device is in use, for as long as that may be by such a copy.
func untilFree(ctx context.Context, detach func() error) error {
	ticker := time.NewTicker(freePoll)
	defer ticker.Stop()
	end := time.Now().Add(freeWait)
	for {
		err := detach()
		if !errors.Is(err, blockdev.ErrInUse) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-ticker.C:
		}
	}
}

// delete deletes the volume that create made, also if its ID never came to the journal.
func (s *lowering) delete(ctx context.Context, d *disk) error {
	rec := s.shared.record(d)
	if rec.VolumeID == "" && rec.Asked.IsZero() || rec.VolumeName == "" {
		return nil
	}
	driver, err := s.shared.driver(d)
	if err != nil {
		return err
	}
	provisioner, ok := driver.(blockdev.Provisioner)
	if !ok {
		return nil // then it has made none
	}
	if err := s.shared.put(d, func(rec *record) { rec.Step = StateDeleting }); err != nil {
		return err
	}
	err = s.shared.observed(StepDelete, func() error {
		id, err := madeVolume(ctx, provisioner, rec)
		if err != nil || id == "" {
			return err
		}
		return provisioner.DeleteVolume(ctx, id)
	})
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", rec.VolumeName, err)
	}
	return nil
}
