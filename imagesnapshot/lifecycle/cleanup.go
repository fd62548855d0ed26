package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/retry"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// cleanup deletes what the work does not need any more, and ends it. What is in use is tried again until it is not.
func (r *run) cleanup(ctx context.Context, s *imagesnapshot.ImageSnapshot) (time.Time, bool, error) {
	w := s.Status.Work
	left, err := r.discardAll(ctx, w.Garbage)
	if ctx.Err() != nil {
		return time.Time{}, true, errors.Join(ctx.Err(), err)
	}
	now := time.Now().UTC()
	if err == nil {
		s.Status.Work = nil
	} else {
		w.Garbage = left
		w.Failures++
		w.NotBefore = now.Add(retryAfter(w.Failures))
		s.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, "clean up: "+imagesnapshot.Redact(err.Error()))
	}
	if putErr := r.put(ctx, s); putErr != nil || err != nil {
		return time.Time{}, false, putErr
	}
	return time.Time{}, false, r.dropIndexes(ctx)
}

// takeDown deletes everything that an image snapshot has, and then the object. Nothing is journalled: what it has
// follows from the object, which stays as it is until the end but for what the user is told.
func (r *run) takeDown(ctx context.Context, s *imagesnapshot.ImageSnapshot) (time.Time, bool, error) {
	if _, err := r.discardAll(ctx, r.everything(s)); err != nil {
		return time.Time{}, true, errors.Join(fmt.Errorf("take image snapshot %s down: %w", s.Name, err), r.tellWhatHolds(ctx, s, err))
	}
	if err := r.Store.Delete(ctx, s.Name, s.ResourceVersion); err != nil {
		return time.Time{}, true, err
	}
	r.Observer.Ended(EndingDeleted, s.Status.Reason)
	return time.Time{}, true, r.dropIndexes(ctx)
}

// tellWhatHolds says in the object why it is not gone yet, once for each reason: every write has it looked at again at
// once.
func (r *run) tellWhatHolds(ctx context.Context, s *imagesnapshot.ImageSnapshot, err error) error {
	message := imagesnapshot.Shorten("cannot be deleted yet: " + imagesnapshot.Redact(err.Error()))
	if errors.Is(err, context.Canceled) || blockdev.Retryable(err) || s.Status.Message == message {
		return nil
	}
	s.Status.Message = message
	s.AddEvent(time.Now().UTC(), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, message)
	return r.put(ctx, s)
}

// everything is what an image snapshot has or may have in the storage.
func (r *run) everything(s *imagesnapshot.ImageSnapshot) []imagesnapshot.Leftover {
	list := leftovers(s.Status.Content)
	w := s.Status.Work
	if w == nil {
		return list
	}
	list = append(list, w.Garbage...)
	if w.VolumeName != "" {
		list = append(list, imagesnapshot.Leftover{Driver: w.Driver, VolumeID: w.VolumeID, VolumeName: w.VolumeName, Attached: s.Status.VolumeID == ""})
	}
	if w.Built != nil {
		list = append(list, leftovers(*w.Built)...)
	}
	if w.Previous != nil {
		list = append(list, leftovers(*w.Previous)...)
	}
	return r.withFlash(s, w, list)
}

// discardAll deletes leftovers and gives those that are still there. Volume snapshots go first: some storage keeps a
// volume for as long as it has any, and one whose ID nobody was told is found by asking for it again, which takes its
// volume.
func (e *Engine) discardAll(ctx context.Context, list []imagesnapshot.Leftover) (left []imagesnapshot.Leftover, err error) {
	failed := make([]bool, len(list))
	for _, discard := range []func(context.Context, imagesnapshot.Leftover) error{e.discardSnapshot, e.discardVolume} {
		for i, l := range list {
			if one := discard(ctx, l); one != nil {
				failed[i], err = true, errors.Join(err, one)
			}
		}
	}
	for i, l := range list {
		if failed[i] {
			left = append(left, l)
		}
	}
	return left, err
}

func (e *Engine) discardVolume(ctx context.Context, l imagesnapshot.Leftover) error {
	if l.VolumeID == "" && l.VolumeName == "" {
		return nil
	}
	b, err := e.backend(l.Driver)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", cmp.Or(l.VolumeName, l.VolumeID), err)
	}
	id := l.VolumeID
	if id == "" {
		list, err := b.Provisioner.ListVolumes(ctx)
		if err != nil {
			return fmt.Errorf("find volume %s: %w", l.VolumeName, err)
		}
		for _, v := range list {
			if v.Name == l.VolumeName {
				id = v.ID
			}
		}
	}
	if id == "" {
		return nil
	}
	return retry.Do(ctx, func(ctx context.Context) error {
		if l.Attached {
			if err := b.Attacher.Detach(ctx, id); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return b.Provisioner.DeleteVolume(ctx, id)
	})
}

func (e *Engine) discardSnapshot(ctx context.Context, l imagesnapshot.Leftover) error {
	if l.VolumeSnapshotID == "" && l.VolumeSnapshotName == "" {
		return nil
	}
	b, err := e.backend(l.Driver)
	if err != nil {
		return fmt.Errorf("delete volume snapshot %s: %w", cmp.Or(l.VolumeSnapshotName, l.VolumeSnapshotID), err)
	}
	id := l.VolumeSnapshotID
	if id == "" {
		list, err := b.Snapshotter.ListVolumeSnapshots(ctx)
		if err != nil {
			return fmt.Errorf("find volume snapshot %s: %w", l.VolumeSnapshotName, err)
		}
		for _, v := range list {
			if v.Name == l.VolumeSnapshotName {
				id = v.ID
			}
		}
	}
	if id == "" {
		return nil
	}
	return retry.Do(ctx, func(ctx context.Context) error { return b.Snapshotter.DeleteVolumeSnapshot(ctx, id) })
}

// dropIndexes forgets the indexes that no image snapshot refers to.
func (e *Engine) dropIndexes(ctx context.Context) error {
	e.indexes.Lock()
	defer e.indexes.Unlock()
	kept, err := e.Indexes.ListIndexes(ctx)
	if err != nil {
		return err
	}
	all, err := e.Store.List(ctx, store.Filter{})
	if err != nil {
		return err
	}
	wanted := make(map[digest.Digest]bool)
	for _, s := range all {
		wanted[s.Status.Identity.IndexDigest] = true
		if w := s.Status.Work; w != nil {
			for _, c := range []*imagesnapshot.Content{w.Built, w.Previous} {
				if c != nil {
					wanted[c.Identity.IndexDigest] = true
				}
			}
		}
	}
	for _, d := range kept {
		if !wanted[d] {
			err = errors.Join(err, e.Indexes.DeleteIndex(ctx, d))
		}
	}
	return err
}
