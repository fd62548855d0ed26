package lifecycle

import (
	"time"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
)

// failing ends work, or has it tried again.
type failing struct {
	names    names
	backends backends
	// keepFailed is how long a failure is kept with its reason.
	keepFailed time.Duration
}

// storageFailed tries again later what may succeed then, and otherwise ends the work.
func (f *failing) storageFailed(j *job, err error) (decision, error) {
	w := j.work()
	message := imagesnapshot.Redact(err.Error())
	w.Failures++
	if !policy.WaitForStorage(err, w.Failures, w.Built != nil) {
		return f.fail(j, &failure{imagesnapshot.ReasonStorageFailed, message})
	}
	now := time.Now().UTC()
	// The operation itself was repeated already: the first waits are left out.
	const skipped = 3
	w.NotBefore = now.Add(retryAfter(w.Failures + skipped))
	if w.Step == imagesnapshot.StepBuild && w.Built == nil {
		w.Building = false // it did not begin, or ended with nothing
	}
	j.object.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, message)
	return write(), nil
}

// fail ends the work without success. What was there before stays; what the work made is cleaned up.
func (f *failing) fail(j *job, why *failure) (decision, error) {
	s, w := j.object, j.work()
	message := imagesnapshot.Shorten(why.message)
	now := time.Now().UTC()
	became := imagesnapshot.PhaseFailed
	if w != nil {
		became = f.giveUp(s, w)
	}
	switch {
	case s.Status.Phase == imagesnapshot.PhaseUpdating:
		became = imagesnapshot.PhaseUpdateFailed
	case became == imagesnapshot.PhaseFailed && why.reason == imagesnapshot.ReasonBuildTimeout:
		became = imagesnapshot.PhaseUnavailable // Q12
	}
	if became == imagesnapshot.PhaseUpdateFailed {
		s.Status.Expires = policy.Expires(s)
	} else {
		s.Status.Expires = now.Add(f.keepFailed)
	}
	s.AddEvent(now, imagesnapshot.EventWarning, why.reason, message)
	if err := s.SetPhase(became, why.reason, message); err != nil {
		return decision{}, err
	}
	d := write()
	if w != nil && !w.Deadline.IsZero() {
		d.told = func(o Observer) { o.BuildEnded(outcomeOf(s, w, why.reason)) }
	}
	return d, nil
}

// giveUp gives up what work made, and says what the image snapshot becomes.
func (f *failing) giveUp(s *imagesnapshot.ImageSnapshot, w *imagesnapshot.Work) imagesnapshot.Phase {
	became := imagesnapshot.PhaseFailed
	garbage := w.Garbage
	garbage = append(garbage, w.DonorVolumes()...)
	if w.VolumeName != "" {
		garbage = append(garbage, imagesnapshot.Leftover{
			Driver: w.Driver, VolumeID: w.VolumeID, VolumeName: w.VolumeName, Attached: w.Built == nil || s.Status.VolumeID == "",
		})
	}
	if w.Built != nil {
		garbage = append(garbage, leftovers(*w.Built)...)
	}
	if w.Built != nil && servesBuilt(s) {
		garbage = append(garbage, leftovers(s.Status.Content)...)
		s.Status.Content = imagesnapshot.Content{}
		became = imagesnapshot.PhaseUnavailable
	}
	if w.Previous != nil {
		s.Status.Content, became = *w.Previous, imagesnapshot.PhaseUpdateFailed
	}
	if f.backends.flashes(w.Driver) {
		// Some may have been made that are not recorded.
		garbage = append(garbage, f.names.flashCopies(s, w)...)
	}
	s.Status.Work = &imagesnapshot.Work{Step: imagesnapshot.StepCleanup, Attempt: w.Attempt, Generation: w.Generation, Garbage: garbage}
	return became
}

// outcomeOf the work w of s, which has just ended.
func outcomeOf(s *imagesnapshot.ImageSnapshot, w *imagesnapshot.Work, reason imagesnapshot.Reason) BuildOutcome {
	begun := w.Deadline.Add(-time.Duration(s.Spec.Build.TimeoutMinutes) * time.Minute)
	o := BuildOutcome{Reason: reason, Took: s.Status.LastUpdated.Sub(begun)}
	if w.Built != nil {
		o.FetchedBytes, o.ReusedBytes = w.Built.FetchedBytes, w.Built.ReusedBytes
	}
	return o
}
