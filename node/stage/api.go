package stage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/google/uuid"

	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
)

// undoTimeout bounds undoing a Stage that went wrong, whose own context may have ended.
const undoTimeout = 30 * time.Second

// Stage makes the disk usable; it is usable when Stage returns without error. Staging the same disk again changes
// nothing but Keep, and ends a drain. Several calls at once make one attachment. If a new disk cannot be made usable,
// everything is undone and the disk is removed. What cannot be undone at once is undone in the background.
//
// Errors: errdefs.ErrAlreadyExists if the name, the volume or the very same layer disk is staged already in another
// way; layerdisk.ErrOtherDisk, ErrNotLayerDisk, ErrVersion, ErrCorrupt; and those of the driver.
func (s *Stager) Stage(ctx context.Context, spec Spec) (DiskStatus, error) {
	if err := spec.validate(); err != nil {
		return DiskStatus{}, fmt.Errorf("stage disk: %w", err)
	}
	for {
		d, err := s.wishes.want(spec)
		if err != nil {
			return DiskStatus{}, fmt.Errorf("stage disk %s: %w", spec.Name, err)
		}
		if err := d.key.lock(ctx); err != nil {
			s.wishes.stopWaiting(d)
			return DiskStatus{}, fmt.Errorf("stage disk %s: wait for what is being done with it: %w", spec.Name, err)
		}
		status, gone, err := s.wishes.stageLocked(ctx, d, spec)
		s.keeper.unlock(d)
		if gone {
			continue // it left while we waited for it, so ours is a new one
		}
		if err != nil {
			return DiskStatus{}, fmt.Errorf("stage disk %s: %w", spec.Name, err)
		}
		return status, nil
	}
}

// wishes are what Stage and Unstage ask for.
type wishes struct {
	*state
	shared   shared
	raising  *raising
	lowering *lowering
}

// want finds the disk of the spec or adds it.
func (s *wishes) want(spec Spec) (*disk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.shared.ready(); err != nil {
		return nil, err
	}
	if _, ok := s.drivers[spec.Driver]; !ok {
		return nil, fmt.Errorf("no driver %q here: %w", spec.Driver, errdefs.ErrInvalidArgument)
	}
	if d := s.fleet.byName[spec.Name]; d != nil {
		if !d.rec.Spec.sameSource(spec) {
			return nil, fmt.Errorf("the name is that of another disk, %s: unstage it or take another name: %w", d.rec.Spec.source(), errdefs.ErrAlreadyExists)
		}
		d.waiters++
		return d, nil
	}
	for _, d := range s.fleet.byName {
		if spec.VolumeID != "" && d.rec.Spec.sameSource(spec) {
			return nil, fmt.Errorf("volume %s is staged as disk %s: %w", spec.VolumeID, d.rec.Spec.Name, errdefs.ErrAlreadyExists)
		}
	}
	rec := record{Spec: spec, Goal: goalStaged, Step: StateWanted, Number: s.fleet.freeNumber(nil), Since: time.Now()}
	if spec.VolumeSnapshotID != "" {
		// The storage may be shared by many nodes that all have disks of this name.
		rec.VolumeName = "berth-" + spec.Name + "-" + uuid.NewString()
	}
	d := &disk{
		rec:          rec,
		pendingSince: time.Now(),
		key:          newKey(),
		waiters:      1,
	}
	s.fleet.add(d)
	return d, nil
}

// stopWaiting ends waiting for a disk that want returned. A new disk is removed if nobody else wants it and nothing was
// done with it.
func (s *wishes) stopWaiting(d *disk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.waiters--
	if d.waiters == 0 && !d.journalled && !d.removed {
		s.fleet.remove(d)
	}
}

func (s *wishes) stageLocked(ctx context.Context, d *disk, spec Spec) (status DiskStatus, gone bool, err error) {
	s.mu.Lock()
	d.waiters--
	gone, known := d.removed, d.journalled
	s.mu.Unlock()
	if gone {
		return DiskStatus{}, true, nil
	}
	if err := s.accept(d, spec); err != nil {
		return DiskStatus{}, false, err
	}
	if !s.shared.isUp(d) {
		if err := s.raising.raise(ctx, d); err != nil {
			return DiskStatus{}, false, s.notRaised(ctx, d, known, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fleet.status(d, s.root), false, nil
}

// accept journals that the disk is wanted, by this spec.
func (s *wishes) accept(d *disk, spec Spec) error {
	rec := s.shared.record(d)
	if rec.Identity.UUID != "" {
		if err := rec.Identity.Check(spec.Expect); err != nil {
			return err
		}
	}
	same := rec.Goal == goalStaged && !rec.Draining && rec.Spec == spec
	if same && s.shared.isJournalled(d) {
		return nil
	}
	err := s.shared.put(d, func(rec *record) {
		rec.Spec, rec.Goal, rec.Draining = spec, goalStaged, false
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !d.journalled {
		s.fleet.remove(d)
	}
	s.fleet.updateTables(d)
	return err
}

// notRaised undoes what was done for a disk that is new here. One that was known before stays, to be tried again.
func (s *wishes) notRaised(ctx context.Context, d *disk, known bool, cause error) error {
	if known {
		s.shared.failed(d, cause)
		return cause
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := s.lowering.lower(undo, d); err != nil {
		err = fmt.Errorf("undo: %w", err)
		s.shared.failed(d, err)
		return errors.Join(cause, err)
	}
	return cause
}

// UnstageOptions say what to do with a disk in use.
type UnstageOptions struct {
	// Drain takes the disk off the node as soon as its last holder releases it, and hands out no more of its layers
	// until then.
	Drain bool
}

// Unstage unmounts and detaches the disk, deletes the volume if it was made here, and removes the disk from the
// journal. A disk in use is errdefs.ErrFailedPrecondition, or with Drain no error; holders is then how many still use
// it. An unknown name is errdefs.ErrNotFound. What fails is tried again in the background.
func (s *Stager) Unstage(ctx context.Context, name string, opts UnstageOptions) (holders int, err error) {
	s.mu.Lock()
	d, err := s.fleet.byName[name], s.shared.ready()
	if err == nil && !s.reconciled {
		err = fmt.Errorf("it is not known yet which disks are in use: %w", errdefs.ErrUnavailable)
	}
	if err == nil && d == nil {
		err = fmt.Errorf("no such disk: %w", errdefs.ErrNotFound)
	}
	if err == nil && d.abort != nil && d.rec.Goal == goalStaged && s.fleet.holders(d) == 0 {
		d.abort() // it would only be undone, and may wait for a device that never comes
	}
	s.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("unstage disk %s: %w", name, err)
	}
	if err := d.key.lock(ctx); err != nil {
		return 0, fmt.Errorf("unstage disk %s: wait for what is being done with it: %w", name, err)
	}
	defer s.keeper.unlock(d)
	holders, err = s.wishes.unstageLocked(ctx, d, opts)
	if err != nil {
		return holders, fmt.Errorf("unstage disk %s: %w", name, err)
	}
	return holders, nil
}

func (s *wishes) unstageLocked(ctx context.Context, d *disk, opts UnstageOptions) (holders int, err error) {
	s.mu.Lock()
	removed, holders := d.removed, s.fleet.holders(d)
	if holders == 0 {
		s.fleet.stopServing(d)
	}
	s.mu.Unlock()
	if removed {
		return 0, nil
	}
	if holders > 0 && !opts.Drain {
		return holders, fmt.Errorf("%d snapshots use its layers: remove the images that use them, or drain the disk: %w", holders, errdefs.ErrFailedPrecondition)
	}
	if holders > 0 {
		err := s.shared.put(d, func(rec *record) { rec.Draining = true })
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fleet.updateTables(d)
		s.shared.wake() // the last holder may have gone meanwhile
		return holders, err
	}
	if err := s.lowering.lower(ctx, d); err != nil {
		s.shared.failed(d, err)
		return 0, err
	}
	return 0, nil
}

// Disks lists all disks by name.
func (s *Stager) Disks() []DiskStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]DiskStatus, 0, len(s.fleet.byName))
	for _, d := range s.fleet.byName {
		list = append(list, s.fleet.status(d, s.root))
	}
	slices.SortFunc(list, func(a, b DiskStatus) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Changed is closed at the next change of a disk: one that comes, serves, fails or goes.
func (s *Stager) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fleet.change
}

// Index is what a disk that serves says about itself; nil if no such disk serves. It is shared and must not be changed.
func (s *Stager) Index(name string) *layerdisk.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.fleet.byName[name]
	if d == nil || !d.up || d.rec.Draining || d.lookup == nil {
		return nil
	}
	return d.lookup.Index()
}

// FoundImage is an image in the index of a disk that serves. It is shared and must not be changed.
type FoundImage struct {
	DiskName string
	Image    layerdisk.Image
}

// Images finds the images of a normalised reference on the disks that serve, by the names of the disks. A nil matcher
// takes every platform.
func (s *Stager) Images(reference string, platform platforms.Matcher) []FoundImage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []FoundImage
	for _, d := range s.fleet.byName {
		if !d.up || d.lookup == nil {
			continue
		}
		for _, img := range d.lookup.Images(reference, platform) {
			found = append(found, FoundImage{d.rec.Spec.Name, img})
		}
	}
	slices.SortStableFunc(found, func(a, b FoundImage) int { return cmp.Compare(a.DiskName, b.DiskName) })
	return found
}

// Foreign lists mounts below our directory that belong to no disk of ours. They are left alone, and their directories
// are not used.
func (s *Stager) Foreign() ([]fsmount.Mounted, error) {
	mounts, err := s.system.Below(s.root)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ours := make(map[string]bool)
	for _, d := range s.fleet.byName {
		ours[d.rec.target(s.root)] = true
	}
	return slices.DeleteFunc(mounts, func(m fsmount.Mounted) bool { return ours[m.Target] }), nil
}

func (s *Stager) warnForeign(ctx context.Context) {
	foreign, err := s.Foreign()
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot look for foreign mounts")
	}
	for _, m := range foreign {
		log.G(ctx).WithField("mount", m.Target).WithField("source", m.Source).Warn("foreign mount in the directory of layer disks is left alone")
	}
}
