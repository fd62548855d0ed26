package imagesnapshot

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// Phase is where an image snapshot is in its life. Front ends translate it into the words of their vendor.
type Phase string

// Phases; docs/image-snapshots.md, section 2, has the table.
const (
	// PhasePending: it is accepted, and nothing is done yet.
	PhasePending Phase = "Pending"
	// PhaseCreating: the first build is under way.
	PhaseCreating Phase = "Creating"
	// PhaseAvailable: nodes may use it.
	PhaseAvailable Phase = "Available"
	// PhaseUpdating: it is built anew, and the old content is kept until that has succeeded.
	PhaseUpdating Phase = "Updating"
	// PhaseUpdateFailed: an update failed, and the old content is still there.
	PhaseUpdateFailed Phase = "UpdateFailed"
	// PhaseFailed: nothing was made. It is kept for a day with the reason.
	PhaseFailed Phase = "Failed"
	// PhaseUnavailable: the build timed out, the image snapshot expired, or its volume snapshot is lost.
	PhaseUnavailable Phase = "Unavailable"
	// PhaseDeleting: it is being taken down, and is gone when that is done.
	PhaseDeleting Phase = "Deleting"
)

// transitions is the one table of which phase may follow which. Deleting may follow every phase (C-25).
var transitions = map[Phase][]Phase{ //nolint:gochecknoglobals // a table
	PhasePending:  {PhaseCreating, PhaseFailed, PhaseUnavailable, PhaseDeleting},
	PhaseCreating: {PhaseAvailable, PhaseFailed, PhaseUnavailable, PhaseDeleting},
	// Available is followed by UpdateFailed if an update served from a flash copy and its regular snapshot came to
	// nothing.
	PhaseAvailable:    {PhaseUpdating, PhaseUpdateFailed, PhaseUnavailable, PhaseDeleting},
	PhaseUpdating:     {PhaseAvailable, PhaseUpdateFailed, PhaseUnavailable, PhaseDeleting},
	PhaseUpdateFailed: {PhaseUpdating, PhaseUnavailable, PhaseDeleting},
	PhaseFailed:       {PhaseDeleting},
	PhaseUnavailable:  {PhaseDeleting},
	PhaseDeleting:     {},
}

// Phases lists all phases in the order of a life.
func Phases() []Phase {
	return []Phase{PhasePending, PhaseCreating, PhaseAvailable, PhaseUpdating, PhaseUpdateFailed, PhaseFailed, PhaseUnavailable, PhaseDeleting}
}

// CanBecome says whether next may follow p. A phase may always stay what it is.
func (p Phase) CanBecome(next Phase) bool {
	return p == next || slices.Contains(transitions[p], next)
}

// Known says whether p is one of Phases.
func (p Phase) Known() bool {
	_, ok := transitions[p]
	return ok
}

// CanUpdate says whether a change of the spec is taken in this phase (E-28).
func (p Phase) CanUpdate() bool { return p == PhaseAvailable || p == PhaseUpdateFailed }

// Building says that a build may be under way.
func (p Phase) Building() bool { return p == PhaseCreating || p == PhaseUpdating }

// SetPhase moves on to another phase, or says why that may not be; the error's class is errdefs.ErrFailedPrecondition.
func (s *ImageSnapshot) SetPhase(next Phase, reason Reason, message string) error {
	if !s.Status.Phase.CanBecome(next) {
		return fmt.Errorf("image snapshot %s is %s and cannot become %s; possible are %v: %w",
			s.Name, s.Status.Phase, next, transitions[s.Status.Phase], errdefs.ErrFailedPrecondition)
	}
	s.Status.Phase, s.Status.Reason, s.Status.Message = next, reason, message
	return nil
}

// Reason is a word in CamelCase for machines (C-45).
type Reason string

// Reasons of phases and events.
const (
	ReasonAccepted         Reason = "Accepted"
	ReasonBuilding         Reason = "Building"
	ReasonReady            Reason = "Ready"
	ReasonFlashReady       Reason = "FlashReady"
	ReasonUpdateStarted    Reason = "UpdateStarted"
	ReasonUpdated          Reason = "Updated"
	ReasonChanged          Reason = "Changed"
	ReasonBuildFailed      Reason = "BuildFailed"
	ReasonBuildTimeout     Reason = "BuildTimeout"
	ReasonImageUnavailable Reason = "ImageUnavailable"
	ReasonTooSmall         Reason = "TooSmall"
	ReasonStorageFailed    Reason = "StorageFailed"
	ReasonRetrying         Reason = "Retrying"
	// ReasonParametersIgnored and ReasonDiskFailed are reasons of events only.
	ReasonParametersIgnored  Reason = "ParametersIgnored"
	ReasonDiskFailed         Reason = "DiskFailed"
	ReasonQuotaExceeded      Reason = "QuotaExceeded"
	ReasonEliminated         Reason = "Eliminated"
	ReasonExpired            Reason = "Expired"
	ReasonUnused             Reason = "Unused"
	ReasonVolumeSnapshotLost Reason = "SnapshotLost"
	ReasonDeleteRequested    Reason = "DeleteRequested"
	ReasonKeptLongEnough     Reason = "KeptLongEnough"
	ReasonLayersReused       Reason = "LayersReused"
	// ReasonLayersNotReused is a reason of events only: reuse was asked for, and no disk has anything to take.
	ReasonLayersNotReused Reason = "LayersNotReused"
	ReasonWarning         Reason = "SpecWarning"
)

// Reasons lists all.
func Reasons() []Reason {
	return []Reason{
		ReasonAccepted, ReasonBuilding, ReasonReady, ReasonFlashReady, ReasonUpdateStarted, ReasonUpdated, ReasonChanged,
		ReasonBuildFailed, ReasonBuildTimeout, ReasonImageUnavailable, ReasonTooSmall, ReasonStorageFailed, ReasonRetrying,
		ReasonParametersIgnored, ReasonQuotaExceeded, ReasonEliminated, ReasonExpired, ReasonUnused, ReasonVolumeSnapshotLost,
		ReasonDiskFailed, ReasonDeleteRequested, ReasonKeptLongEnough, ReasonLayersReused, ReasonLayersNotReused, ReasonWarning,
	}
}
