package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/retry"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/internal/backoff"
)

// takeSnapshots asks the storage for the regular volume snapshots. Before that, with Flash, what was built is made
// usable (E-23).
func (r *run) takeSnapshots(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	w := s.Status.Work
	b, err := r.backend(w.Driver)
	if err != nil {
		return r.storageFailed(ctx, s, err)
	}
	if !servesBuilt(s) {
		err := retry.Do(ctx, func(ctx context.Context) error { return b.Attacher.Detach(ctx, w.VolumeID) })
		if err != nil {
			return r.storageFailed(ctx, s, fmt.Errorf("detach volume: %w", err))
		}
		if s.Spec.Flash {
			return r.flash(ctx, s, b)
		}
	}
	if w.Built.VolumeSnapshots == nil {
		// The names stand in the journal before anything has them.
		for i := range s.Spec.Copies.Standard {
			w.Built.VolumeSnapshots = append(w.Built.VolumeSnapshots, imagesnapshot.VolumeSnapshot{
				Name: r.names.snapshot(kindStandard, s, w.Attempt, i), Kind: imagesnapshot.VolumeSnapshotStandard,
			})
		}
		return r.put(ctx, s)
	}
	for i := range w.Built.VolumeSnapshots {
		v := &w.Built.VolumeSnapshots[i]
		var made blockdev.VolumeSnapshot
		err := retry.Do(ctx, func(ctx context.Context) (err error) {
			made, err = b.Snapshotter.CreateVolumeSnapshot(ctx, v.Name, w.VolumeID)
			return err
		})
		if err != nil {
			return r.storageFailed(ctx, s, fmt.Errorf("create volume snapshot: %w", err))
		}
		v.ID, v.SizeBytes, v.Ready = made.ID, made.SizeBytes, made.ReadyToUse
	}
	w.Step, w.Failures = imagesnapshot.StepWait, 0
	return r.put(ctx, s)
}

// servesBuilt says whether what the work built is what nodes get already.
func servesBuilt(s *imagesnapshot.ImageSnapshot) bool {
	return s.Status.Identity == s.Status.Work.Built.Identity && s.Status.Phase == imagesnapshot.PhaseAvailable
}

// flash makes what was built usable: by temporary snapshots where the storage has them, else by the volume itself.
func (r *run) flash(ctx context.Context, s *imagesnapshot.ImageSnapshot, b Backend) error {
	w := s.Status.Work
	content := w.Built.Clone()
	content.Ready = time.Now().UTC()
	if b.Flash == nil {
		content.VolumeID = w.VolumeID
	} else {
		for i := range s.Spec.Copies.Flash {
			name := r.names.snapshot(kindFlash, s, w.Attempt, i)
			v, err := flashCopy(ctx, b.Flash, name, w.VolumeID)
			if err != nil {
				return r.storageFailed(ctx, s, fmt.Errorf("create flash snapshot: %w", err))
			}
			content.VolumeSnapshots = append(content.VolumeSnapshots, v)
		}
		content.VolumeSnapshotID, content.VolumeSnapshotName = content.VolumeSnapshots[0].ID, content.VolumeSnapshots[0].Name
	}
	previous := s.Status.Content
	if previous.Identity.UUID != "" {
		w.Previous = &previous
	}
	if err := r.serve(s, content, imagesnapshot.ReasonFlashReady, "usable; the regular volume snapshot is being made"); err != nil {
		return err
	}
	return r.put(ctx, s)
}

// flashCopy makes one temporary snapshot. Its name follows from the journal, so it is found again.
func flashCopy(ctx context.Context, flash FlashSnapshotter, name, volumeID string) (imagesnapshot.VolumeSnapshot, error) {
	var made blockdev.VolumeSnapshot
	err := retry.Do(ctx, func(ctx context.Context) (err error) {
		made, err = flash.CreateFlashSnapshot(ctx, name, volumeID)
		if err == nil && !made.ReadyToUse {
			err = fmt.Errorf("flash snapshot %s: %w", name, blockdev.ErrNotReady)
		}
		return err
	})
	return imagesnapshot.VolumeSnapshot{
		ID: made.ID, Name: name, Kind: imagesnapshot.VolumeSnapshotFlash, SizeBytes: made.SizeBytes, Ready: true,
	}, err
}

// serve makes content what nodes get.
func (r *run) serve(s *imagesnapshot.ImageSnapshot, content imagesnapshot.Content, reason imagesnapshot.Reason, message string) error {
	s.Status.Content = content
	s.Status.ObservedGeneration = s.Status.Work.Generation
	setExpiry(s)
	s.AddEvent(content.Ready, imagesnapshot.EventNormal, reason, message)
	return s.SetPhase(imagesnapshot.PhaseAvailable, reason, message)
}

// Waits between two looks at volume snapshots that are not ready: as often as a small one could be missed, as seldom as
// a large one needs.
const (
	firstPoll = time.Second
	lastPoll  = 30 * time.Second
)

// awaitSnapshots looks whether the regular volume snapshots are complete, and if so switches to them.
func (r *run) awaitSnapshots(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	w := s.Status.Work
	b, err := r.backend(w.Driver)
	if err != nil {
		return r.storageFailed(ctx, s, err)
	}
	for i := range w.Built.VolumeSnapshots {
		v := &w.Built.VolumeSnapshots[i]
		if v.Ready {
			continue
		}
		var found blockdev.VolumeSnapshot
		err := retry.Do(ctx, func(ctx context.Context) (err error) {
			found, err = b.Snapshotter.GetVolumeSnapshot(ctx, v.ID)
			return err
		})
		if err != nil {
			return r.storageFailed(ctx, s, fmt.Errorf("look at volume snapshot: %w", err))
		}
		if !found.ReadyToUse {
			wait := backoff.Doubling{First: firstPoll, Most: lastPoll}.After(w.Failures)
			w.Failures++
			w.NotBefore = time.Now().UTC().Add(wait)
			return r.put(ctx, s)
		}
		v.Ready, v.SizeBytes = true, found.SizeBytes
	}
	return r.complete(ctx, s)
}

// complete switches to what was built and is complete now, in one write. Only after it is anything old given up.
func (r *run) complete(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
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
	if err := r.serve(s, content, reason, message); err != nil {
		return err
	}
	s.Status.Progress = 100
	s.Status.Work = &imagesnapshot.Work{Step: imagesnapshot.StepCleanup, Attempt: w.Attempt, Generation: w.Generation, Garbage: garbage}
	if err := r.put(ctx, s); err != nil {
		return err
	}
	r.Observer.BuildEnded(outcomeOf(s, w, reason))
	return nil
}

// outcomeOf the work w, which has just ended.
func outcomeOf(s *imagesnapshot.ImageSnapshot, w *imagesnapshot.Work, reason imagesnapshot.Reason) BuildOutcome {
	begun := w.Deadline.Add(-time.Duration(s.Spec.Build.TimeoutMinutes) * time.Minute)
	o := BuildOutcome{Reason: reason, Took: s.Status.LastUpdated.Sub(begun)}
	if w.Built != nil {
		o.FetchedBytes, o.ReusedBytes = w.Built.FetchedBytes, w.Built.ReusedBytes
	}
	return o
}

// leftovers are the volume snapshots of a content that is given up. The volume that served it is the work's.
func leftovers(c imagesnapshot.Content) []imagesnapshot.Leftover {
	var list []imagesnapshot.Leftover
	for _, v := range c.VolumeSnapshots {
		list = append(list, imagesnapshot.Leftover{Driver: c.Driver, VolumeSnapshotID: v.ID, VolumeSnapshotName: v.Name})
	}
	return list
}

// maxStorageFailures in a row end the work, if nothing is built yet or nothing is to be expected; with the waits
// between them, and those of package retry, that is about ten minutes.
const maxStorageFailures = 10

// storageFailed tries again later what may succeed then, and otherwise ends the work.
func (r *run) storageFailed(ctx context.Context, s *imagesnapshot.ImageSnapshot, err error) error {
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	w := s.Status.Work
	message := imagesnapshot.Redact(err.Error())
	// What we have just made may not be known to all parts of the storage yet, and an internal error is what many
	// drivers make of everything that passes.
	passing := blockdev.Retryable(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsResourceExhausted(err) ||
		errdefs.IsNotFound(err) || errdefs.IsInternal(err)
	w.Failures++
	// What is built is not thrown away because the storage is busy, as with a detachment that takes an hour: the
	// deadline ends that.
	worthWaiting := w.Built != nil && blockdev.Retryable(err)
	if !passing || w.Failures >= maxStorageFailures && !worthWaiting {
		return r.fail(ctx, s, imagesnapshot.ReasonStorageFailed, message)
	}
	now := time.Now().UTC()
	w.NotBefore = now.Add(retryAfter(w.Failures + 3))
	if w.Step == imagesnapshot.StepBuild && w.Built == nil {
		w.Building = false // it did not begin, or ended with nothing
	}
	s.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, message)
	return r.put(ctx, s)
}

// fail ends the work without success. What was there before stays; what the work made is cleaned up.
func (r *run) fail(ctx context.Context, s *imagesnapshot.ImageSnapshot, reason imagesnapshot.Reason, message string) error {
	// The deadline may be the reason: what is left to do has to be written all the same.
	const lastWrite = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
	defer cancel()
	message = imagesnapshot.Shorten(message)
	now := time.Now().UTC()
	next := imagesnapshot.PhaseFailed
	ended := s.Status.Work
	if w := s.Status.Work; w != nil {
		garbage := w.Garbage
		if w.VolumeName != "" {
			garbage = append(garbage, imagesnapshot.Leftover{Driver: w.Driver, VolumeID: w.VolumeID, VolumeName: w.VolumeName, Attached: w.Built == nil || s.Status.VolumeID == ""})
		}
		if w.Built != nil {
			garbage = append(garbage, leftovers(*w.Built)...)
		}
		if w.Built != nil && servesBuilt(s) {
			garbage = append(garbage, leftovers(s.Status.Content)...)
			s.Status.Content = imagesnapshot.Content{}
			next = imagesnapshot.PhaseUnavailable
		}
		if w.Previous != nil {
			s.Status.Content, next = *w.Previous, imagesnapshot.PhaseUpdateFailed
		}
		s.Status.Work = &imagesnapshot.Work{Step: imagesnapshot.StepCleanup, Attempt: w.Attempt, Generation: w.Generation, Garbage: r.withFlash(s, w, garbage)}
	}
	switch {
	case s.Status.Phase == imagesnapshot.PhaseUpdating:
		next = imagesnapshot.PhaseUpdateFailed
	case next == imagesnapshot.PhaseFailed && reason == imagesnapshot.ReasonBuildTimeout:
		next = imagesnapshot.PhaseUnavailable // Q12
	}
	if next == imagesnapshot.PhaseUpdateFailed {
		setExpiry(s)
	} else {
		s.Status.Expires = now.Add(r.Times.KeepFailed)
	}
	s.AddEvent(now, imagesnapshot.EventWarning, reason, message)
	if err := s.SetPhase(next, reason, message); err != nil {
		return err
	}
	if err := r.put(ctx, s); err != nil {
		return err
	}
	if ended != nil && !ended.Deadline.IsZero() {
		r.Observer.BuildEnded(outcomeOf(s, ended, reason))
	}
	return nil
}

// withFlash adds flash copies that may have been made and are not recorded.
func (r *run) withFlash(s *imagesnapshot.ImageSnapshot, w *imagesnapshot.Work, garbage []imagesnapshot.Leftover) []imagesnapshot.Leftover {
	if b, err := r.backend(w.Driver); err == nil && b.Flash == nil || !s.Spec.Flash || w.Built == nil {
		return garbage
	}
	for i := range s.Spec.Copies.Flash {
		garbage = append(garbage, imagesnapshot.Leftover{Driver: w.Driver, VolumeSnapshotName: r.names.snapshot(kindFlash, s, w.Attempt, i)})
	}
	return garbage
}
