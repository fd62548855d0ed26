package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"time"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/retry"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
	"berth.dev/berth/internal/backoff"
)

// publishing takes an image snapshot from a disk that is written to volume snapshots that nodes get.
type publishing struct{ names names }

// take asks the storage for the regular volume snapshots. Before that, with Flash, what was built is made usable
// (E-23).
func (p *publishing) take(ctx context.Context, j *job) (decision, error) {
	s, w := j.object, j.work()
	if !servesBuilt(s) {
		if err := j.backend.Attacher.Detach(ctx, w.VolumeID); err != nil {
			return decision{}, &storageError{fmt.Errorf("detach volume: %w", err)}
		}
		if s.Spec.Flash {
			return p.flash(ctx, j)
		}
	}
	if w.Built.VolumeSnapshots == nil {
		// The names stand in the journal before anything has them.
		for i := range s.Spec.Copies.Standard {
			w.Built.VolumeSnapshots = append(w.Built.VolumeSnapshots, imagesnapshot.VolumeSnapshot{
				Name: p.names.volumeSnapshot(kindStandard, s, w.Attempt, i), Kind: imagesnapshot.VolumeSnapshotStandard,
			})
		}
		return write(), nil
	}
	for i := range w.Built.VolumeSnapshots {
		v := &w.Built.VolumeSnapshots[i]
		made, err := j.backend.Snapshotter.CreateVolumeSnapshot(ctx, v.Name, w.VolumeID)
		if err != nil {
			return decision{}, &storageError{fmt.Errorf("create volume snapshot: %w", err)}
		}
		v.ID, v.SizeBytes, v.Ready = made.ID, made.SizeBytes, made.ReadyToUse
	}
	w.Step, w.Failures = imagesnapshot.StepWait, 0
	return write(), nil
}

// servesBuilt says whether what the work built is what nodes get already.
func servesBuilt(s *imagesnapshot.ImageSnapshot) bool {
	return s.Status.Identity == s.Status.Work.Built.Identity && s.Status.Phase == imagesnapshot.PhaseAvailable
}

// flash makes what was built usable: by temporary volume snapshots where the storage has them, else by the volume
// itself.
func (p *publishing) flash(ctx context.Context, j *job) (decision, error) {
	s, w := j.object, j.work()
	content := w.Built.Clone()
	content.Ready = time.Now().UTC()
	if j.backend.Flash == nil {
		content.VolumeID = w.VolumeID
	} else {
		for _, l := range p.names.flashCopies(s, w) {
			v, err := flashCopy(ctx, j.backend.Flash, l.VolumeSnapshotName, w.VolumeID)
			if err != nil {
				return decision{}, &storageError{fmt.Errorf("create flash snapshot: %w", err)}
			}
			content.VolumeSnapshots = append(content.VolumeSnapshots, v)
		}
		content.VolumeSnapshotID, content.VolumeSnapshotName = content.VolumeSnapshots[0].ID, content.VolumeSnapshots[0].Name
	}
	previous := s.Status.Content
	if previous.Identity.UUID != "" {
		w.Previous = &previous
	}
	if err := serve(s, content, imagesnapshot.ReasonFlashReady, "usable; the regular volume snapshot is being made"); err != nil {
		return decision{}, err
	}
	return write(), nil
}

// flashCopy makes one temporary volume snapshot. Its name follows from the journal, so it is found again.
func flashCopy(ctx context.Context, flash FlashVolumeSnapshotter, name, volumeID string) (imagesnapshot.VolumeSnapshot, error) {
	var made blockdev.VolumeSnapshot
	err := retry.Do(ctx, func(ctx context.Context) (err error) {
		made, err = flash.CreateFlashVolumeSnapshot(ctx, name, volumeID)
		if err == nil && !made.ReadyToUse {
			err = fmt.Errorf("flash snapshot %s: %w", name, blockdev.ErrNotReady)
		}
		return err
	})
	return imagesnapshot.VolumeSnapshot{
		ID: made.ID, Name: name, Kind: imagesnapshot.VolumeSnapshotFlash, SizeBytes: made.SizeBytes, Ready: true,
	}, err
}

// serve makes content the content that nodes get.
func serve(s *imagesnapshot.ImageSnapshot, content imagesnapshot.Content, reason imagesnapshot.Reason, message string) error {
	s.Status.Content = content
	s.Status.ObservedGeneration = s.Status.Work.Generation
	s.Status.Expires = policy.Expires(s)
	s.AddEvent(content.Ready, imagesnapshot.EventNormal, reason, message)
	return s.SetPhase(imagesnapshot.PhaseAvailable, reason, message)
}

// Waits between two looks at volume snapshots that are not ready: as often as a small one could be missed, as seldom as
// a large one needs.
const (
	firstPoll = time.Second
	lastPoll  = 30 * time.Second
)

// await looks whether the regular volume snapshots are complete, and if so switches to them.
func (p *publishing) await(ctx context.Context, j *job) (decision, error) {
	w := j.work()
	for i := range w.Built.VolumeSnapshots {
		v := &w.Built.VolumeSnapshots[i]
		if v.Ready {
			continue
		}
		found, err := j.backend.Snapshotter.GetVolumeSnapshot(ctx, v.ID)
		if err != nil {
			return decision{}, &storageError{fmt.Errorf("look at volume snapshot: %w", err)}
		}
		if !found.ReadyToUse {
			w.NotBefore = time.Now().UTC().Add(backoff.Doubling{First: firstPoll, Most: lastPoll}.After(w.Failures))
			w.Failures++
			return write(), nil
		}
		v.Ready, v.SizeBytes = true, found.SizeBytes
	}
	return complete(j.object)
}

// complete switches to what was built and is complete now, in one write. Only after it is anything old given up.
func complete(s *imagesnapshot.ImageSnapshot) (decision, error) {
	w := s.Status.Work
	flashed, old := servesBuilt(s), s.Status.Content
	content := w.Built.Clone()
	content.VolumeSnapshotID, content.VolumeSnapshotName = content.VolumeSnapshots[0].ID, content.VolumeSnapshots[0].Name
	content.Ready = time.Now().UTC()
	garbage := slices.Clone(w.Garbage)
	garbage = append(garbage, imagesnapshot.Leftover{Driver: w.Driver, VolumeID: w.VolumeID, VolumeName: w.VolumeName})
	garbage = append(garbage, leftovers(old)...)
	if w.Previous != nil {
		garbage = append(garbage, leftovers(*w.Previous)...)
	}
	reason, message := imagesnapshot.ReasonReady, "usable"
	if old.Identity.UUID != "" && !flashed || w.Previous != nil {
		reason, message = imagesnapshot.ReasonUpdated, "the new content is usable"
	}
	if flashed {
		content.Ready = old.Ready // it has been usable since then
	}
	if err := serve(s, content, reason, message); err != nil {
		return decision{}, err
	}
	s.Status.Progress = 100
	s.Status.Work = &imagesnapshot.Work{Step: imagesnapshot.StepCleanup, Attempt: w.Attempt, Generation: w.Generation, Garbage: garbage}
	d := write()
	d.told = func(o Observer) { o.BuildEnded(outcomeOf(s, w, reason)) }
	return d, nil
}
