package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
	"berth.dev/berth/imagesnapshot/store"
)

// making takes an image snapshot from its acceptance to a disk that is written.
type making struct {
	builder     Builder
	accessLists store.AccessLists
	objects     objects
	quotas      *quotas
	names       names
	bases       bases
	disposal    disposal
	limits      imagesnapshot.Limits
	// driver that builds use from now on.
	driver string
}

// begin turns a Pending image snapshot into one that is being created, when there is room for it among its owner's and
// among the builds.
func (m *making) begin(ctx context.Context, j *job) (decision, error) {
	s := j.object
	if err := m.quotas.makeRoom(ctx, s); err != nil {
		if errdefs.IsResourceExhausted(err) {
			err = &failure{imagesnapshot.ReasonQuotaExceeded, err.Error()}
		}
		return decision{}, err
	}
	if err := j.place.take(ctx); err != nil {
		return decision{}, err
	}
	now := time.Now().UTC()
	s.Status.Builds++
	s.Status.Started, s.Status.Progress = now, 0
	s.Status.Work = &imagesnapshot.Work{Step: imagesnapshot.StepPlan, Attempt: s.Status.Builds, Generation: s.Generation, Driver: m.driver}
	if err := s.SetPhase(imagesnapshot.PhaseCreating, imagesnapshot.ReasonBuilding, "building"); err != nil {
		return decision{}, err
	}
	s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonBuilding, "build started")
	return write(), nil
}

// plan decides how large the volume is and what it starts from.
func (m *making) plan(ctx context.Context, j *job) (decision, error) {
	if err := j.place.take(ctx); err != nil {
		return decision{}, err
	}
	s, w := j.object, j.work()
	if w.Deadline.IsZero() {
		w.Deadline = time.Now().UTC().Add(time.Duration(s.Spec.Build.TimeoutMinutes) * time.Minute)
		noteIgnored(j)
		d := write()
		d.told = Observer.BuildStarted
		return d, nil
	}
	if j.backend.Check != nil {
		if err := j.backend.Check(ctx); err != nil {
			return decision{}, &storageError{err}
		}
	}
	// A volume that was given up takes room that the next one may need. What cannot be deleted yet is left for the end.
	w.Garbage, _ = m.disposal.discard(ctx, w.Garbage) //nolint:errcheck // it is tried again
	w.BaseVolumeSnapshotID, w.BaseName, w.Donors = "", "", nil
	wanted, from, err := m.sizeAndSources(ctx, j)
	if err != nil {
		return decision{}, err
	}
	w.WantedBytes, w.SizeBytes = wanted, wanted
	if base := from.start; base != nil {
		w.BaseVolumeSnapshotID, w.BaseName = base.VolumeSnapshotID, base.Name
		w.SizeBytes = max(wanted, base.SizeBytes)
	}
	for i, d := range from.donors {
		w.Donors = append(w.Donors, imagesnapshot.Donor{
			Name: d.Name, VolumeSnapshotID: d.VolumeSnapshotID, SizeBytes: d.SizeBytes, VolumeName: m.names.donor(s, w.Attempt, i),
		})
	}
	w.Failures = 0
	w.VolumeName, w.VolumeID = m.names.volume(s, w.Attempt), ""
	w.Building, w.Step = false, imagesnapshot.StepVolume
	return write(), nil
}

// sizeAndSources are how large the volume has to be, and what layers are taken from. The builder is asked only where
// that depends on what the images consist of.
func (m *making) sizeAndSources(ctx context.Context, j *job) (wanted int64, from choice, err error) {
	s, w := j.object, j.work()
	reuse := s.Spec.ReuseLayers && !w.NoBase
	wanted = int64(s.Spec.Size.GiB) << 30
	if s.Spec.Size.AsNeeded {
		wanted = w.SizeBytes
	}
	if !reuse && (!s.Spec.Size.AsNeeded || w.SizeBytes > 0) {
		return wanted, choice{}, nil
	}
	plan, err := m.builder.Plan(ctx, PlanRequest{Owner: s.Owner, Spec: s.Spec})
	if err != nil {
		return 0, choice{}, buildFailure(err)
	}
	if s.Spec.Size.AsNeeded {
		wanted = max(wanted, policy.SizeFor(plan.blobBytes(), m.limits.MinSizeGiB))
	}
	if reuse {
		from, err = m.bases.choose(ctx, s, j.driver, plan, wanted)
	}
	if reuse && err == nil && from.start == nil && len(from.donors) == 0 {
		s.AddEvent(time.Now().UTC(), imagesnapshot.EventNormal, imagesnapshot.ReasonLayersNotReused, fmt.Sprintf(
			"no layers are reused: of the disks of this owner in the storage of driver %q, %d can be read, and none of them has a layer of the images",
			j.driver, from.asked))
	}
	return wanted, from, err
}

// buildFailure ends the work. The class of the builder's error decides the reason.
func buildFailure(err error) error {
	return &failure{policy.BuildReason(err), imagesnapshot.Redact(err.Error())}
}

// makeVolume makes the volume that stands in the journal.
func (m *making) makeVolume(ctx context.Context, j *job) (decision, error) {
	w := j.work()
	volume, err := j.backend.Provisioner.CreateVolume(ctx, blockdev.CreateVolumeRequest{
		Name: w.VolumeName, SizeBytes: w.SizeBytes, SourceVolumeSnapshotID: w.BaseVolumeSnapshotID,
		Parameters: volumeParameters(j.object, j.backend),
	})
	switch {
	case err != nil && w.BaseVolumeSnapshotID != "" && (errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err)):
		// It has gone, or is larger than it said, or this storage makes no volume of it here.
		return withoutBase(j.object, err), nil
	case err != nil:
		return decision{}, &storageError{fmt.Errorf("create volume: %w", err)}
	}
	w.VolumeID = volume.ID
	if refused, err := makeDonors(ctx, j); err != nil || refused {
		return write(), err
	}
	w.Step, w.Failures = imagesnapshot.StepBuild, 0
	return write(), nil
}

// makeDonors makes the volumes of the donors. One that the storage refuses is done without.
func makeDonors(ctx context.Context, j *job) (refused bool, err error) {
	w := j.work()
	for i := range w.Donors {
		d := &w.Donors[i]
		volume, err := j.backend.Provisioner.CreateVolume(ctx, blockdev.CreateVolumeRequest{
			Name: d.VolumeName, SizeBytes: d.SizeBytes, SourceVolumeSnapshotID: d.VolumeSnapshotID,
			Parameters: volumeParameters(j.object, j.backend),
		})
		switch {
		case errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err), errdefs.IsNotImplemented(err):
			j.object.AddEvent(time.Now().UTC(), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying,
				fmt.Sprintf("cannot copy layers from the disk of %s: %s", d.Name, imagesnapshot.Redact(err.Error())))
			// An attempt that was broken off may have made it all the same.
			w.Garbage = append(w.Garbage, imagesnapshot.Leftover{Driver: w.Driver, VolumeName: d.VolumeName, Attached: true})
			w.Donors = slices.Delete(w.Donors, i, i+1)
			return true, nil
		case err != nil:
			return false, &storageError{fmt.Errorf("create volume to copy layers from: %w", err)}
		}
		d.VolumeID = volume.ID
	}
	return false, nil
}

// withoutBase begins anew on a blank volume.
func withoutBase(s *imagesnapshot.ImageSnapshot, why error) decision {
	w := s.Status.Work
	s.AddEvent(time.Now().UTC(), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying,
		fmt.Sprintf("cannot take layers from %s, building all of it: %s", takenFrom(w), imagesnapshot.Redact(why.Error())))
	w.NoBase = true
	return anew(s)
}

// takenFrom names the disks that a build takes layers from.
func takenFrom(w *imagesnapshot.Work) string {
	var names []string
	if w.BaseName != "" {
		names = append(names, w.BaseName)
	}
	for _, d := range w.Donors {
		names = append(names, d.Name)
	}
	return strings.Join(names, ", ")
}

// anew gives the volume up and begins with another one.
func anew(s *imagesnapshot.ImageSnapshot) decision {
	w := s.Status.Work
	w.Garbage = append(w.Garbage, imagesnapshot.Leftover{Driver: w.Driver, VolumeID: w.VolumeID, VolumeName: w.VolumeName, Attached: true})
	w.Garbage = append(w.Garbage, w.DonorVolumes()...)
	w.Donors = nil
	s.Status.Builds++
	w.Attempt, w.Step, w.Building = s.Status.Builds, imagesnapshot.StepPlan, false
	w.VolumeID, w.VolumeName = "", ""
	return write()
}
