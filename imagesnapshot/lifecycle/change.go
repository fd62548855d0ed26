package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
)

// Preconditions must hold, or the request is refused with errdefs.ErrConflict (C-22). Empty fields demand nothing.
type Preconditions struct {
	ID, ResourceVersion string
}

func (p Preconditions) check(s *imagesnapshot.ImageSnapshot) error {
	if p.ID != "" && p.ID != s.ID {
		return fmt.Errorf("image snapshot %s has ID %s, not %s: %w", s.Name, s.ID, p.ID, errdefs.ErrConflict)
	}
	if p.ResourceVersion != "" && p.ResourceVersion != s.ResourceVersion {
		return fmt.Errorf("image snapshot %s is at resource version %s, not %s: %w", s.Name, s.ResourceVersion, p.ResourceVersion, errdefs.ErrConflict)
	}
	return nil
}

// DeleteRequest asks to take an image snapshot down.
type DeleteRequest struct {
	// NameOrID of the image snapshot.
	NameOrID      string
	Preconditions Preconditions
	DryRun        bool
}

// Delete marks an image snapshot. Run then aborts its build, if any, and takes it down (C-25). It works in every
// phase, and doing it again is no error. It returns the object as it is now. Errors: NotFound, Conflict.
func (e *Engine) Delete(ctx context.Context, req DeleteRequest) (*imagesnapshot.ImageSnapshot, error) {
	return e.change(ctx, req.NameOrID, req.DryRun, func(s *imagesnapshot.ImageSnapshot) error {
		if err := req.Preconditions.check(s); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		return markDeleted(s, time.Now().UTC(), imagesnapshot.ReasonDeleteRequested, "deletion was asked for")
	})
}

// markDeleted has the reconciler take s down.
func markDeleted(s *imagesnapshot.ImageSnapshot, now time.Time, reason imagesnapshot.Reason, message string) error {
	if s.Status.Phase == imagesnapshot.PhaseDeleting {
		return nil
	}
	s.DeletionRequested, s.Status.LastUpdated = now, now
	s.AddEvent(now, imagesnapshot.EventNormal, reason, message)
	return s.SetPhase(imagesnapshot.PhaseDeleting, reason, message)
}

// UpdateRequest asks for another spec.
type UpdateRequest struct {
	// NameOrID of the image snapshot.
	NameOrID string
	Spec     imagesnapshot.Spec
	// Labels and Annotations replace what is there, unless nil.
	Labels, Annotations map[string]string
	// Rebuild builds even if the new spec would not make it necessary: to take up what a tag means by now.
	Rebuild       bool
	Preconditions Preconditions
	DryRun        bool
}

// Update takes a new spec, in phases Available and UpdateFailed only (E-28). If that changes what is on the disk, Run
// builds anew and switches when that has succeeded. Errors: NotFound, Conflict, imagesnapshot.FieldError
// (InvalidArgument), FailedPrecondition for other phases.
//
// A request that changes nothing of an Available image snapshot writes nothing and records no event. In phase
// UpdateFailed the same spec again is another try.
func (e *Engine) Update(ctx context.Context, req UpdateRequest) (CreateResult, error) {
	var warnings []string
	s, err := e.change(ctx, req.NameOrID, req.DryRun, func(s *imagesnapshot.ImageSnapshot) error {
		if err := req.Preconditions.check(s); err != nil {
			return fmt.Errorf("update: %w", err)
		}
		if !s.Status.Phase.CanUpdate() {
			return fmt.Errorf("update image snapshot %s: it is %s; an update is possible when it is %s or %s: %w", s.Name, s.Status.Phase,
				imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdateFailed, errdefs.ErrFailedPrecondition)
		}
		if w := s.Status.Work; w != nil && w.Step != imagesnapshot.StepCleanup {
			return fmt.Errorf("update image snapshot %s: its volume snapshot is not complete yet, try again later: %w", s.Name, errdefs.ErrFailedPrecondition)
		}
		old := *s
		s.Spec = req.Spec.Clone()
		if req.Labels != nil {
			s.Labels = req.Labels
		}
		if req.Annotations != nil {
			s.Annotations = req.Annotations
		}
		s.Complete(e.limits)
		if err := s.Validate(e.limits); err != nil {
			return fmt.Errorf("update image snapshot %s: %w", s.Name, err)
		}
		warnings = s.Warnings(0)
		if !req.Rebuild && s.Status.Phase == imagesnapshot.PhaseAvailable && sameRequest(s, &old) {
			return errUnchanged
		}
		return e.takeSpec(s, old.Spec, req.Rebuild)
	})
	return CreateResult{Object: s, Existing: true, Warnings: warnings}, err
}

// sameRequest says that a and b ask for the same.
func sameRequest(a, b *imagesnapshot.ImageSnapshot) bool {
	return reflect.DeepEqual(a.Spec, b.Spec) && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations)
}

// takeSpec begins what a changed spec makes necessary.
func (e *Engine) takeSpec(s *imagesnapshot.ImageSnapshot, old imagesnapshot.Spec, rebuild bool) error {
	now := time.Now().UTC()
	s.Status.LastUpdated = now
	if !reflect.DeepEqual(s.Spec, old) || rebuild {
		s.Generation++
	}
	if !rebuild && !policy.NeedsBuild(old, s.Spec) && s.Status.Phase != imagesnapshot.PhaseUpdateFailed {
		s.Status.ObservedGeneration = s.Generation
		s.Status.Expires = policy.Expires(s)
		s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonChanged, "changed; what is on the disk stays")
		return nil
	}
	garbage, attempt := []imagesnapshot.Leftover(nil), 0
	if w := s.Status.Work; w != nil {
		garbage, attempt = w.Garbage, w.Attempt
	}
	attempt = max(attempt, s.Status.Builds) + 1
	s.Status.Work = &imagesnapshot.Work{Step: imagesnapshot.StepPlan, Attempt: attempt, Generation: s.Generation, Driver: e.driver, Garbage: garbage}
	s.Status.Builds, s.Status.Progress, s.Status.Started = attempt, 0, now
	s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonUpdateStarted, "building anew")
	return s.SetPhase(imagesnapshot.PhaseUpdating, imagesnapshot.ReasonUpdateStarted, "building anew")
}

// change finds an object and changes it. With dryRun it only reports what the result would be.
func (e *Engine) change(ctx context.Context, nameOrID string, dryRun bool, do func(*imagesnapshot.ImageSnapshot) error) (*imagesnapshot.ImageSnapshot, error) {
	s, err := e.objects.find(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	if dryRun {
		if err := do(s); err != nil && !errors.Is(err, errUnchanged) {
			return nil, err
		}
		return s, nil
	}
	return e.objects.mutate(ctx, s.Name, s.ID, do)
}

// Note records an event of an image snapshot that something else than its life cycle saw. NotFound if there is none of
// that name and ID.
func (e *Engine) Note(ctx context.Context, name, id string, kind imagesnapshot.EventType, reason imagesnapshot.Reason, message string) error {
	now := time.Now().UTC()
	_, err := e.objects.mutate(ctx, name, id, func(s *imagesnapshot.ImageSnapshot) error {
		s.AddEvent(now, kind, reason, imagesnapshot.Redact(message))
		return nil
	})
	return err
}
