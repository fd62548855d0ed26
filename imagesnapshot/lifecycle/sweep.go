package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// SweepReport is what a sweep found.
type SweepReport struct {
	// Orphans are volumes and volume snapshots that this installation made and nothing refers to: what calls left behind
	// that were broken off and completed by the storage all the same.
	Orphans []imagesnapshot.Leftover
	// Deleted of them, if that was asked for.
	Deleted []imagesnapshot.Leftover
	// Lost are the names of image snapshots of which no volume snapshot exists any more.
	Lost []string
}

// Sweep compares the storage with the store. Orphans are deleted if remove says so; whatever has not exactly a name that this
// installation gives is left alone. Image snapshots whose volume snapshots are gone become Unavailable.
func (e *Engine) Sweep(ctx context.Context, remove bool) (SweepReport, error) {
	var report SweepReport
	// First the storage, then the store: everything is journalled before it is made, so what was there at the first look
	// and has no owner at the second has none.
	found, snapshots, err := e.inStorage(ctx)
	if err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	all, err := e.Store.List(ctx, store.Filter{})
	if err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	known := make(map[string]bool)
	for _, s := range all {
		for _, l := range (&run{Engine: e}).everything(s) {
			for _, key := range []string{l.VolumeID, l.VolumeName, l.SnapshotID, l.SnapshotName} {
				known[key] = true
			}
		}
		known[s.Status.VolumeID] = true
	}
	var errs []error
	for _, l := range found {
		if known[l.VolumeID] && l.VolumeID != "" || known[l.VolumeName] && l.VolumeName != "" ||
			known[l.SnapshotID] && l.SnapshotID != "" || known[l.SnapshotName] && l.SnapshotName != "" {
			continue
		}
		report.Orphans = append(report.Orphans, l)
		if !remove {
			continue
		}
		if err := e.discard(ctx, l); err != nil {
			errs = append(errs, err)
			continue
		}
		report.Deleted = append(report.Deleted, l)
	}
	for _, s := range all {
		lost, err := e.checkSnapshots(ctx, s, snapshots)
		errs = append(errs, err)
		if lost {
			report.Lost = append(report.Lost, s.Name)
		}
	}
	errs = append(errs, e.dropIndexes(ctx))
	if err := errors.Join(errs...); err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	return report, nil
}

// inStorage lists what has a name of ours, and the IDs of all volume snapshots.
func (e *Engine) inStorage(ctx context.Context) (ours []imagesnapshot.Leftover, snapshots map[string]bool, err error) {
	volumes, err := e.Provisioner.ListVolumes(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, v := range volumes {
		if e.names.ours(v.Name) {
			ours = append(ours, imagesnapshot.Leftover{VolumeID: v.ID, VolumeName: v.Name, Attached: true})
		}
	}
	list, err := e.Snapshotter.ListSnapshots(ctx)
	if err != nil {
		return nil, nil, err
	}
	snapshots = make(map[string]bool, len(list))
	for _, v := range list {
		snapshots[v.ID] = true
		if e.names.ours(v.Name) {
			ours = append(ours, imagesnapshot.Leftover{SnapshotID: v.ID, SnapshotName: v.Name})
		}
	}
	return ours, snapshots, nil
}

// checkSnapshots drops from an image snapshot the volume snapshots that are not there any more.
func (e *Engine) checkSnapshots(ctx context.Context, s *imagesnapshot.ImageSnapshot, there map[string]bool) (lost bool, err error) {
	switch s.Status.Phase {
	case imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdateFailed:
	default:
		return false, nil
	}
	gone := make(map[string]bool)
	for _, v := range s.Status.Snapshots {
		if there[v.ID] {
			continue
		}
		// The list may be older than the object.
		if _, err := e.Snapshotter.GetSnapshot(ctx, v.ID); err == nil {
			continue
		} else if !errdefs.IsNotFound(err) {
			return false, err
		}
		gone[v.ID] = true
	}
	if len(gone) == 0 {
		return false, nil
	}
	_, err = e.mutate(ctx, s.Name, s.ID, func(s *imagesnapshot.ImageSnapshot) error {
		lost = false
		return e.dropSnapshots(s, gone, &lost)
	})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return lost, err
}

func (e *Engine) dropSnapshots(s *imagesnapshot.ImageSnapshot, gone map[string]bool, lost *bool) error {
	now := time.Now().UTC()
	var kept []imagesnapshot.VolumeSnapshot
	for _, v := range s.Status.Snapshots {
		if !gone[v.ID] {
			kept = append(kept, v)
			continue
		}
		s.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonSnapshotLost, fmt.Sprintf("volume snapshot %s is gone from the storage", v.ID))
	}
	s.Status.Snapshots, s.Status.LastUpdated = kept, now
	s.Status.SnapshotID, s.Status.SnapshotName = "", ""
	if len(kept) > 0 {
		s.Status.SnapshotID, s.Status.SnapshotName = kept[0].ID, kept[0].Name
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
		s.Status.Expires = now.Add(e.Times.KeepFailed)
	}
	return s.SetPhase(imagesnapshot.PhaseUnavailable, imagesnapshot.ReasonSnapshotLost, "its volume snapshot is gone from the storage; delete it, and create it again if it is wanted")
}

func (e *Engine) sweepAndLog(ctx context.Context) {
	report, err := e.Sweep(ctx, true)
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).Warn("sweep did not come to its end")
	}
	for _, l := range report.Orphans {
		log.G(ctx).WithFields(log.Fields{"volume": l.VolumeID, "volume_name": l.VolumeName, "snapshot": l.SnapshotID, "snapshot_name": l.SnapshotName}).
			Warn("found something of ours in the storage that nothing refers to")
	}
	for _, name := range report.Lost {
		log.G(ctx).WithField("image_snapshot", name).Error("volume snapshot is gone from the storage")
	}
}
