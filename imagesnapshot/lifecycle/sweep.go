package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// SweepReport is what a sweep found.
type SweepReport struct {
	// Orphans are volumes and volume snapshots that this installation made and nothing refers to. They come from calls
	// that were broken off and that the storage completed all the same.
	Orphans []imagesnapshot.Leftover
	// Deleted are the orphans that were deleted, if that was asked for.
	Deleted []imagesnapshot.Leftover
	// Lost are the names of image snapshots that have no volume snapshot any more.
	Lost []string
}

// sweeper finds what is in the storage without being in the store, and the reverse.
type sweeper struct {
	objects  objects
	backends backends
	names    names
	disposal disposal
	indexes  *indexes
	// keepFailed is how long an automatic image snapshot that is lost is kept.
	keepFailed time.Duration
}

// sweep is Engine.Sweep, of all drivers or of those that are in use.
func (w *sweeper) sweep(ctx context.Context, remove, everywhere bool) (SweepReport, error) {
	var report SweepReport
	all, err := w.objects.store.List(ctx, store.Filter{})
	if err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	// First the storage, then the store: everything is journalled before it is made, so what was there at the first
	// look and has no owner at the second has none.
	found, err := w.inStorage(ctx, w.backends.inUse(all, everywhere))
	errs := []error{err}
	if all, err = w.objects.store.List(ctx, store.Filter{}); err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	errs = append(errs, w.orphans(ctx, found, all, remove, &report))
	for _, s := range all {
		there, listed := found.volumeSnapshots[w.backends.name(s.Status.Driver)]
		if !listed {
			continue
		}
		lost, err := w.checkVolumeSnapshots(ctx, s, there)
		errs = append(errs, err)
		if lost {
			report.Lost = append(report.Lost, s.Name)
		}
	}
	errs = append(errs, w.indexes.dropUnused(ctx))
	if err := errors.Join(errs...); err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	return report, nil
}

// orphans are reported, and deleted if remove says so.
func (w *sweeper) orphans(ctx context.Context, found inventory, all []*imagesnapshot.ImageSnapshot, remove bool, report *SweepReport) error {
	var errs []error
	known := w.known(all)
	for _, l := range found.ours {
		if known[l.VolumeID] || known[l.VolumeName] || known[l.VolumeSnapshotID] || known[l.VolumeSnapshotName] {
			continue
		}
		report.Orphans = append(report.Orphans, l)
		if !remove {
			continue
		}
		if _, err := w.disposal.discard(ctx, []imagesnapshot.Leftover{l}); err != nil {
			errs = append(errs, err)
			continue
		}
		report.Deleted = append(report.Deleted, l)
	}
	return errors.Join(errs...)
}

// known are the names and IDs of everything in the storage that image snapshots refer to.
func (w *sweeper) known(all []*imagesnapshot.ImageSnapshot) map[string]bool {
	known := make(map[string]bool)
	for _, s := range all {
		for _, l := range everything(s, w.names, w.backends) {
			for _, key := range []string{l.VolumeID, l.VolumeName, l.VolumeSnapshotID, l.VolumeSnapshotName} {
				known[key] = true
			}
		}
		known[s.Status.VolumeID] = true
	}
	delete(known, "")
	return known
}

// inventory is what was found in the storage.
type inventory struct {
	// ours is what has a name of ours.
	ours []imagesnapshot.Leftover
	// volumeSnapshots are the IDs of all volume snapshots by driver, for the drivers that could be asked.
	volumeSnapshots map[string]map[string]bool
}

// inStorage lists what the drivers have. The error names the drivers that could not be asked.
func (w *sweeper) inStorage(ctx context.Context, drivers []string) (inventory, error) {
	found := inventory{volumeSnapshots: make(map[string]map[string]bool)}
	var errs []error
	for _, driver := range drivers {
		b, err := w.backends.of(driver)
		if err == nil {
			err = found.look(ctx, driver, b, w.names)
		}
		// Storage that has no such thing has nothing of ours.
		if err != nil && !errdefs.IsNotImplemented(err) {
			errs = append(errs, fmt.Errorf("look through the storage of driver %s: %w", driver, err))
		}
	}
	return found, errors.Join(errs...)
}

func (i *inventory) look(ctx context.Context, driver string, b Backend, n names) error {
	// Volume snapshots first, as they are to be deleted first; see disposal.
	list, err := b.Snapshotter.ListVolumeSnapshots(ctx)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(list))
	for _, v := range list {
		there[v.ID] = true
		if n.ours(v.Name) {
			i.ours = append(i.ours, imagesnapshot.Leftover{Driver: driver, VolumeSnapshotID: v.ID, VolumeSnapshotName: v.Name})
		}
	}
	i.volumeSnapshots[driver] = there
	volumes, err := b.Provisioner.ListVolumes(ctx)
	for _, v := range volumes {
		if n.ours(v.Name) {
			i.ours = append(i.ours, imagesnapshot.Leftover{Driver: driver, VolumeID: v.ID, VolumeName: v.Name, Attached: true})
		}
	}
	return err
}

// settleWait is how long a storage may take until all its parts know of something new: EC2 tells clients to be ready
// for five minutes (docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html).
const settleWait = 5 * time.Minute

// checkVolumeSnapshots drops from an image snapshot the volume snapshots that are not there any more.
func (w *sweeper) checkVolumeSnapshots(ctx context.Context, s *imagesnapshot.ImageSnapshot, there map[string]bool) (lost bool, err error) {
	switch s.Status.Phase {
	case imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdateFailed:
	default:
		return false, nil
	}
	b, err := w.backends.of(s.Status.Driver)
	if err != nil {
		return false, err
	}
	if time.Since(s.Status.LastUpdated) < settleWait {
		return false, nil // not all parts of the storage may know of them yet
	}
	gone := make(map[string]bool)
	for _, v := range s.Status.VolumeSnapshots {
		if there[v.ID] {
			continue
		}
		// The list may be older than the object.
		if _, err := b.Snapshotter.GetVolumeSnapshot(ctx, v.ID); err == nil {
			continue
		} else if !errdefs.IsNotFound(err) {
			return false, err
		}
		gone[v.ID] = true
	}
	if len(gone) == 0 {
		return false, nil
	}
	_, err = w.objects.mutate(ctx, s.Name, s.ID, func(s *imagesnapshot.ImageSnapshot) error {
		lost = false
		return w.dropVolumeSnapshots(s, gone, &lost)
	})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return lost, err
}

func (w *sweeper) dropVolumeSnapshots(s *imagesnapshot.ImageSnapshot, gone map[string]bool, lost *bool) error {
	now := time.Now().UTC()
	var kept []imagesnapshot.VolumeSnapshot
	for _, v := range s.Status.VolumeSnapshots {
		if !gone[v.ID] {
			kept = append(kept, v)
			continue
		}
		s.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonVolumeSnapshotLost, fmt.Sprintf("volume snapshot %s is gone from the storage", v.ID))
	}
	s.Status.VolumeSnapshots, s.Status.LastUpdated = kept, now
	s.Status.VolumeSnapshotID, s.Status.VolumeSnapshotName = "", ""
	if len(kept) > 0 {
		s.Status.VolumeSnapshotID, s.Status.VolumeSnapshotName = kept[0].ID, kept[0].Name
		return nil
	}
	switch s.Status.Phase {
	case imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdateFailed:
	default:
		return nil
	}
	*lost = true
	s.Status.Expires = time.Time{} // a user decides what becomes of it
	if s.Origin == imagesnapshot.OriginAutomatic {
		s.Status.Expires = now.Add(w.keepFailed)
	}
	return s.SetPhase(imagesnapshot.PhaseUnavailable, imagesnapshot.ReasonVolumeSnapshotLost, "its volume snapshot is gone from the storage; delete it, and create it again if it is wanted")
}
