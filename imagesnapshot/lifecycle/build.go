package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/retry"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
)

// begin turns a Pending image snapshot into one that is being created, when there is room for it among its owner's and
// among the builds.
func (r *run) begin(ctx context.Context, s *imagesnapshot.ImageSnapshot) (time.Time, bool, error) {
	if err := r.makeRoom(ctx, s); err != nil {
		if !errdefs.IsResourceExhausted(err) {
			return time.Time{}, true, err
		}
		return time.Time{}, false, r.fail(ctx, s, imagesnapshot.ReasonQuotaExceeded, err.Error())
	}
	if err := r.acquireSlot(ctx); err != nil {
		return time.Time{}, true, err
	}
	now := time.Now().UTC()
	s.Status.Builds++
	s.Status.Started, s.Status.Progress = now, 0
	s.Status.Work = &imagesnapshot.Work{Step: imagesnapshot.StepPlan, Attempt: s.Status.Builds, Generation: s.Generation, Driver: r.Driver}
	if err := s.SetPhase(imagesnapshot.PhaseCreating, imagesnapshot.ReasonBuilding, "building"); err != nil {
		return time.Time{}, true, err
	}
	s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonBuilding, "build started")
	return time.Time{}, false, r.put(ctx, s)
}

// work takes the next step of what is under way. The deadline covers everything but the clean-up.
func (r *run) work(ctx context.Context, s *imagesnapshot.ImageSnapshot) (time.Time, bool, error) {
	w := s.Status.Work
	if w.Step == imagesnapshot.StepCleanup {
		return r.cleanup(ctx, s)
	}
	if !w.Deadline.IsZero() {
		if !time.Now().Before(w.Deadline) {
			return time.Time{}, false, r.fail(ctx, s, imagesnapshot.ReasonBuildTimeout,
				fmt.Sprintf("not complete after %d minutes", s.Spec.Build.TimeoutMinutes))
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, w.Deadline)
		defer cancel()
	}
	var err error
	switch w.Step {
	case imagesnapshot.StepPlan:
		err = r.plan(ctx, s)
	case imagesnapshot.StepVolume:
		err = r.makeVolume(ctx, s)
	case imagesnapshot.StepBuild:
		err = r.build(ctx, s)
	case imagesnapshot.StepVolumeSnapshots:
		err = r.takeSnapshots(ctx, s)
	case imagesnapshot.StepWait:
		err = r.awaitSnapshots(ctx, s)
	default:
		err = fmt.Errorf("journal of image snapshot %s has the unknown step %q; delete it: %w", s.Name, w.Step, errdefs.ErrDataLoss)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && err != nil {
		return time.Time{}, false, nil // the next look finds the deadline passed
	}
	return time.Time{}, false, err
}

// plan decides how large the volume is and what it starts from.
func (r *run) plan(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	if err := r.acquireSlot(ctx); err != nil {
		return err
	}
	w := s.Status.Work
	b, err := r.backend(w.Driver)
	if err != nil {
		return r.storageFailed(ctx, s, err)
	}
	if w.Deadline.IsZero() {
		w.Deadline = time.Now().UTC().Add(time.Duration(s.Spec.Build.TimeoutMinutes) * time.Minute)
		r.noteIgnored(s, b)
		if err := r.put(ctx, s); err != nil {
			return err
		}
		r.Observer.BuildStarted()
		return nil
	}
	if b.Check != nil {
		if err := b.Check(ctx); err != nil {
			return r.storageFailed(ctx, s, err)
		}
	}
	// A volume that was given up takes room that the next one may need. What cannot be deleted yet is left for the end.
	w.Garbage, _ = r.discardAll(ctx, w.Garbage) //nolint:errcheck // it is tried again
	wanted := int64(s.Spec.Size.GiB) << 30
	reuse := s.Spec.ReuseLayers && !w.NoBase
	w.BaseVolumeSnapshotID, w.BaseName = "", ""
	var base *base
	if reuse || s.Spec.Size.AsNeeded && w.SizeBytes == 0 {
		plan, err := r.Builder.Plan(ctx, PlanRequest{Owner: s.Owner, Spec: s.Spec})
		if err != nil {
			return r.failBuild(ctx, s, err)
		}
		if s.Spec.Size.AsNeeded {
			wanted = max(w.SizeBytes, r.sizeFor(plan))
		}
		if reuse {
			if base, err = r.chooseBase(ctx, s, plan, wanted); err != nil {
				return err
			}
		}
	} else if s.Spec.Size.AsNeeded {
		wanted = w.SizeBytes
	}
	w.WantedBytes, w.SizeBytes = wanted, wanted
	if base != nil {
		w.BaseVolumeSnapshotID, w.BaseName = base.snapshotID, base.name
		w.SizeBytes = max(wanted, base.sizeBytes)
	}
	w.Failures = 0
	w.VolumeName, w.VolumeID = r.names.volume(s, w.Attempt), ""
	w.Building, w.Step = false, imagesnapshot.StepVolume
	return r.put(ctx, s)
}

// sizeFor estimates a volume for a plan: three times what the layers take compressed (Q15), in whole GiB,
// and not less than the smallest legal size.
func (r *run) sizeFor(p Plan) int64 {
	const times = 3
	var sum int64
	for _, l := range p.Layers {
		sum += l.BlobBytes
	}
	return max(int64(r.Limits.MinSizeGiB)<<30, roundGiB(times*sum))
}

func roundGiB(bytes int64) int64 { return (bytes + 1<<30 - 1) >> 30 << 30 }

func (r *run) makeVolume(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	w := s.Status.Work
	b, err := r.backend(w.Driver)
	if err != nil {
		return r.storageFailed(ctx, s, err)
	}
	var volume blockdev.Volume
	err = retry.Do(ctx, func(ctx context.Context) (err error) {
		volume, err = b.Provisioner.CreateVolume(ctx, blockdev.CreateVolumeRequest{
			Name: w.VolumeName, SizeBytes: w.SizeBytes, SourceVolumeSnapshotID: w.BaseVolumeSnapshotID, Parameters: volumeParameters(s, b),
		})
		return err
	})
	switch {
	case err != nil && w.BaseVolumeSnapshotID != "" && (errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err)):
		// It has gone, or is larger than it said, or this storage makes no volume of it here.
		return r.withoutBase(ctx, s, err)
	case err != nil:
		return r.storageFailed(ctx, s, fmt.Errorf("create volume: %w", err))
	}
	w.VolumeID, w.Step, w.Failures = volume.ID, imagesnapshot.StepBuild, 0
	return r.put(ctx, s)
}

// withoutBase begins anew on a blank volume.
func (r *run) withoutBase(ctx context.Context, s *imagesnapshot.ImageSnapshot, why error) error {
	w := s.Status.Work
	s.AddEvent(time.Now().UTC(), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying,
		fmt.Sprintf("cannot start from the disk of %s, building all of it: %s", w.BaseName, imagesnapshot.Redact(why.Error())))
	w.NoBase = true
	return r.anew(ctx, s)
}

// anew gives the volume up and begins with another one.
func (r *run) anew(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	w := s.Status.Work
	w.Garbage = append(w.Garbage, imagesnapshot.Leftover{Driver: w.Driver, VolumeID: w.VolumeID, VolumeName: w.VolumeName, Attached: true})
	s.Status.Builds++
	w.Attempt, w.Step, w.Building = s.Status.Builds, imagesnapshot.StepPlan, false
	w.VolumeID, w.VolumeName = "", ""
	return r.put(ctx, s)
}

// build has the disk written. A build that was interrupted is not gone on with: nobody knows what it wrote.
func (r *run) build(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	w := s.Status.Work
	if w.Building {
		s.AddEvent(time.Now().UTC(), imagesnapshot.EventNormal, imagesnapshot.ReasonRetrying, "the build was interrupted and begins anew")
		return r.anew(ctx, s)
	}
	b, err := r.backend(w.Driver)
	if err != nil {
		return r.storageFailed(ctx, s, err)
	}
	if err := r.acquireSlot(ctx); err != nil {
		return err
	}
	w.Building = true
	s.Status.LastUpdated = time.Now().UTC()
	if s, err = r.Store.Update(ctx, s); err != nil {
		return err
	}
	w = s.Status.Work
	device, err := attachOwn(ctx, b, w.VolumeID)
	if err != nil {
		return r.storageFailed(ctx, s, fmt.Errorf("attach volume: %w", err))
	}
	result, err := r.Builder.Build(ctx, BuildRequest{
		PlanRequest: PlanRequest{Owner: s.Owner, Spec: s.Spec}, Name: s.Name, Device: device, Reuse: w.BaseVolumeSnapshotID != "",
		Traced: r.traced(ctx, s), Progress: r.progress(ctx, s),
	})
	if ctx.Err() != nil {
		// Aborted: by a deletion, the deadline or the end of this process. Whoever comes next gives the volume up.
		return errors.Join(ctx.Err(), err)
	}
	r.releaseSlot()
	if s, err = r.readAgain(ctx, s, err); err != nil {
		return r.buildFailed(ctx, s, err)
	}
	return r.built(ctx, s, result)
}

// attachOwn attaches a volume to be written to. A driver that finds devices by names that several volumes may have,
// such as serials that are cut off, could give the device of another one.
func attachOwn(ctx context.Context, b Backend, volumeID string) (device blockdev.Device, err error) {
	var attached map[string]blockdev.Device
	err = retry.Do(ctx, func(ctx context.Context) (err error) {
		if device, err = b.Attacher.Attach(ctx, volumeID, blockdev.AttachOptions{}); err != nil {
			return err
		}
		attached, err = b.Attacher.Attached(ctx)
		return err
	})
	if err != nil {
		return device, err
	}
	for other, d := range attached {
		if other != volumeID && d.Path == device.Path {
			return device, fmt.Errorf("the driver gives device %s for volume %s and for volume %s: %w", d.Path, volumeID, other, blockdev.ErrInUse)
		}
	}
	return device, nil
}

// traced are the lists by which the files of the disk are placed. A build is as right without them.
func (r *run) traced(ctx context.Context, s *imagesnapshot.ImageSnapshot) []*accesslist.List {
	if r.AccessLists == nil {
		return nil
	}
	lists, err := r.AccessLists.AccessLists(ctx, s.ID)
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("image_snapshot", s.Name).Warn("building without access lists")
	}
	return lists
}

// readAgain gets the object after a build, whose progress changed it. buildErr is passed on.
func (r *run) readAgain(ctx context.Context, s *imagesnapshot.ImageSnapshot, buildErr error) (*imagesnapshot.ImageSnapshot, error) {
	current, err := r.Store.Get(ctx, s.Name)
	if err == nil && (current.ID != s.ID || current.Status.Work == nil || current.Status.Work.Attempt != s.Status.Work.Attempt) {
		err = errSuperseded
	}
	if err != nil {
		return s, errors.Join(err, buildErr)
	}
	return current, buildErr
}

// progress writes how far a build is, at most once a second, and never fails the build.
func (r *run) progress(ctx context.Context, s *imagesnapshot.ImageSnapshot) func(int) {
	const interval = time.Second
	const most = 95 // the rest is the volume snapshot's
	name, id, attempt := s.Name, s.ID, s.Status.Work.Attempt
	var last time.Time
	written := 0
	return func(percent int) {
		percent = max(0, min(most, percent*most/100))
		now := time.Now()
		if percent <= written || now.Sub(last) < interval || ctx.Err() != nil {
			return
		}
		last, written = now, percent
		_, err := r.mutate(ctx, name, id, func(s *imagesnapshot.ImageSnapshot) error {
			if !s.Status.Phase.Building() || s.Status.Work == nil || s.Status.Work.Attempt != attempt {
				return errSuperseded
			}
			s.Status.Progress, s.Status.LastUpdated = percent, now.UTC()
			return nil
		})
		if err != nil && ctx.Err() == nil && !errors.Is(err, errSuperseded) {
			log.G(ctx).WithError(err).WithField("image_snapshot", name).Debug("progress not recorded")
		}
	}
}

// buildFailed decides whether another try may succeed.
func (r *run) buildFailed(ctx context.Context, s *imagesnapshot.ImageSnapshot, err error) error {
	w := s.Status.Work
	var small *TooSmallError
	switch {
	case errors.Is(err, errSuperseded):
		return err
	case w.BaseVolumeSnapshotID != "" && (errdefs.IsDataLoss(err) || errors.As(err, &small) && !s.Spec.Size.AsNeeded):
		// What the base has and nobody needs takes room that a disk built from nothing may not.
		return r.withoutBase(ctx, s, err)
	case errors.As(err, &small) && s.Spec.Size.AsNeeded && small.NeededBytes > w.SizeBytes:
		w.SizeBytes = roundGiB(small.NeededBytes)
		if limit := int64(r.Limits.MaxSizeGiB) << 30; small.NeededBytes <= limit {
			w.SizeBytes = min(w.SizeBytes, limit)
			s.AddEvent(time.Now().UTC(), imagesnapshot.EventNormal, imagesnapshot.ReasonRetrying,
				fmt.Sprintf("the volume was too small, building anew on one of %d GiB", w.SizeBytes>>30))
			return r.anew(ctx, s)
		}
	}
	return r.failBuild(ctx, s, err)
}

// failBuild ends the work with the reason that the error's class gives.
func (r *run) failBuild(ctx context.Context, s *imagesnapshot.ImageSnapshot, err error) error {
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	reason := imagesnapshot.ReasonBuildFailed
	switch {
	case errdefs.IsNotFound(err), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		reason = imagesnapshot.ReasonImageUnavailable
	case errdefs.IsResourceExhausted(err):
		reason = imagesnapshot.ReasonTooSmall
	}
	return r.fail(ctx, s, reason, imagesnapshot.Redact(err.Error()))
}

// built records what was made.
func (r *run) built(ctx context.Context, s *imagesnapshot.ImageSnapshot, result BuildResult) error {
	ix, id, err := layerdisk.ParseIdentified(result.Index)
	if err != nil {
		return r.failBuild(ctx, s, fmt.Errorf("read index of the disk: %w", err))
	}
	w := s.Status.Work
	w.Built = &imagesnapshot.Content{
		Driver: w.Driver, VolumeBytes: w.WantedBytes,
		Images: imagesOf(ix), Identity: id, DiskBytes: result.DiskBytes, Layers: len(ix.Layers),
		FetchedBytes: result.FetchedBytes, ReusedBytes: result.ReusedBytes, BaseName: w.BaseName,
	}
	now := time.Now().UTC()
	if result.ReusedBytes > 0 {
		s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonLayersReused,
			fmt.Sprintf("%d bytes of layers taken over from %s, %d fetched", result.ReusedBytes, w.BaseName, result.FetchedBytes))
	}
	var sum int64
	for _, l := range ix.Layers {
		sum += l.UnpackedBytes
	}
	for _, warning := range s.Warnings(sum) {
		s.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonWarning, warning)
	}
	w.Step, w.Failures, w.NotBefore = imagesnapshot.StepVolumeSnapshots, 0, time.Time{}
	s.Status.Progress = 95
	r.indexes.Lock()
	defer r.indexes.Unlock()
	if err := r.Indexes.PutIndex(ctx, id.IndexDigest, result.Index); err != nil {
		return err
	}
	return r.put(ctx, s)
}

// imagesOf lists what an index holds (C-47).
func imagesOf(ix *layerdisk.Index) []imagesnapshot.Image {
	look := layerdisk.NewLookup(ix)
	var list []imagesnapshot.Image
	for _, img := range ix.Images {
		out := imagesnapshot.Image{Reference: img.Reference, Platform: platforms.FormatAll(img.Platform), Digest: img.Manifest.Digest}
		seen := make(map[digest.Digest]bool)
		for _, l := range look.Stack(img.ChainID) {
			out.Layers++
			if !seen[l.DiffID] {
				seen[l.DiffID] = true
				out.SizeBytes += l.UnpackedBytes
			}
		}
		list = append(list, out)
	}
	return list
}
