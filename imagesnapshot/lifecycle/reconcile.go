package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/internal/backoff"
)

// Waits after an image snapshot's work failed for a reason that may pass.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = time.Minute
)

func retryAfter(failures int) time.Duration {
	return backoff.Doubling{First: firstRetry, Most: lastRetry}.After(failures)
}

// reconciler is the one loop that takes image snapshots from step to step: it looks up the storage that the work is in,
// writes what a step decided, and decides what becomes of failures.
type reconciler struct {
	store    store.Store
	backends backends
	indexes  *indexes
	places   places
	observer Observer

	making   *making
	removing *removing
	aging    *aging
	failing  *failing
	// steps of a build by their names in the journal.
	steps map[imagesnapshot.Step]step
}

func newReconciler(cfg Config, e *Engine, b backends, n names, kept *indexes) *reconciler {
	r := &reconciler{
		store: cfg.Store, backends: b, indexes: kept, places: make(places, max(1, cfg.MaxBuilds)), observer: cfg.Observer,
		making: &making{
			builder: cfg.Builder, accessLists: cfg.AccessLists, objects: e.objects, quotas: e.quotas, names: n,
			bases: bases{e.objects, cfg.Indexes, b, kept.contents}, disposal: disposal{b}, limits: cfg.Limits, driver: cfg.Driver,
		},
		removing: &removing{names: n, backends: b, disposal: disposal{b}},
		aging:    &aging{matches: e.matches, times: cfg.Times},
		failing:  &failing{names: n, backends: b, keepFailed: cfg.Times.KeepFailed},
	}
	publishing := &publishing{n}
	r.steps = map[imagesnapshot.Step]step{
		imagesnapshot.StepPlan: r.making.plan, imagesnapshot.StepVolume: r.making.makeVolume, imagesnapshot.StepBuild: r.making.build,
		imagesnapshot.StepVolumeSnapshots: publishing.take, imagesnapshot.StepWait: publishing.await,
	}
	return r
}

// reconcile does all that can be done now for one image snapshot and says when there is more; zero is when it changes.
func (r *reconciler) reconcile(ctx context.Context, name string, deleting func()) (time.Time, error) {
	p := &place{all: r.places}
	defer p.leave()
	for {
		if cause := context.Cause(ctx); cause != nil {
			if errors.Is(cause, errDeletionAsked) {
				return time.Time{}, nil // the change that asked comes again
			}
			return time.Time{}, cause
		}
		s, err := r.store.Get(ctx, name)
		if err != nil {
			return time.Time{}, err
		}
		if s.Status.Phase == imagesnapshot.PhaseDeleting {
			deleting()
		}
		n, err := r.advance(ctx, &job{object: s, place: p})
		switch {
		case errdefs.IsConflict(err), errors.Is(err, errSuperseded):
			continue // somebody else changed it: look again
		case errors.Is(context.Cause(ctx), errDeletionAsked):
			continue
		case err != nil:
			return time.Time{}, err
		case !n.now:
			return n.at, nil
		}
	}
}

// advance takes the next step of an image snapshot and does what it decides. A deadline covers the steps, not what is
// written: that it has passed has to be written as well.
func (r *reconciler) advance(ctx context.Context, j *job) (next, error) {
	bounded, cancel := ctx, func() {}
	if d := deadline(j.object); !d.IsZero() && time.Now().Before(d) {
		bounded, cancel = context.WithDeadline(ctx, d)
	}
	defer cancel()
	d, err := r.decide(bounded, j)
	for err == nil && d.then != nil {
		then := d.then
		if err = r.apply(ctx, j, d); err == nil {
			d, err = then(bounded, j)
		}
	}
	if err != nil && ctx.Err() == nil && errors.Is(bounded.Err(), context.DeadlineExceeded) {
		return now(), nil // the next look finds the deadline passed
	}
	if err != nil {
		if d, err = r.judge(ctx, j, err); err != nil {
			return next{}, err
		}
	}
	return d.next, r.apply(ctx, j, d)
}

// deadline returns the deadline of the work under way, or zero. A clean-up and a deletion have no deadline.
func deadline(s *imagesnapshot.ImageSnapshot) time.Time {
	w := s.Status.Work
	if w == nil || w.Step == imagesnapshot.StepCleanup || s.Status.Phase == imagesnapshot.PhaseDeleting {
		return time.Time{}
	}
	return w.Deadline
}

// decide finds the step that is due, and takes it.
func (r *reconciler) decide(ctx context.Context, j *job) (decision, error) {
	s, w := j.object, j.work()
	switch {
	case s.Status.Phase == imagesnapshot.PhaseDeleting:
		return r.removing.takeDown(ctx, j)
	case s.Status.Phase == imagesnapshot.PhasePending:
		return r.making.begin(ctx, j)
	case w == nil:
		return r.aging.age(ctx, j)
	case w.Step == imagesnapshot.StepCleanup:
		if time.Now().Before(w.NotBefore) {
			// What is only to be cleaned up keeps nobody from expiring.
			d, err := r.aging.age(ctx, j)
			d.next = d.next.orAt(w.NotBefore)
			return d, err
		}
		return r.removing.cleanup(ctx, j)
	case !w.Deadline.IsZero() && !time.Now().Before(w.Deadline):
		return decision{}, &failure{imagesnapshot.ReasonBuildTimeout, fmt.Sprintf("not complete after %d minutes", s.Spec.Build.TimeoutMinutes)}
	case time.Now().Before(w.NotBefore):
		return wait(at(w.Deadline).orAt(w.NotBefore)), nil
	}
	take, ok := r.steps[w.Step]
	if !ok {
		return decision{}, fmt.Errorf("journal of image snapshot %s has the unknown step %q; delete it: %w", s.Name, w.Step, errdefs.ErrDataLoss)
	}
	b, err := r.backends.of(w.Driver)
	if err != nil {
		return decision{}, &storageError{err}
	}
	j.backend, j.driver = b, r.backends.name(w.Driver)
	return take(ctx, j)
}

// judge decides what becomes of a step that did not succeed.
func (r *reconciler) judge(ctx context.Context, j *job, err error) (decision, error) {
	var f *failure
	var s *storageError
	switch {
	case ctx.Err() != nil:
		return decision{}, errors.Join(ctx.Err(), err)
	case errors.As(err, &f):
		return r.failing.fail(j, f)
	case errors.As(err, &s):
		return r.failing.storageFailed(j, s.err)
	}
	return decision{}, err
}

// apply does what a decision says.
func (r *reconciler) apply(ctx context.Context, j *job, d decision) error {
	switch {
	case d.remove:
		if err := r.store.Delete(ctx, j.object.Name, j.object.ResourceVersion); err != nil {
			return err
		}
	case d.index != nil:
		if err := r.indexes.keep(ctx, d.index, func() error { return r.put(ctx, j) }); err != nil {
			return err
		}
	case d.write:
		if err := r.put(ctx, j); err != nil {
			return err
		}
	}
	if d.told != nil {
		d.told(r.observer)
	}
	if d.unused {
		if err := r.indexes.dropUnused(ctx); err != nil {
			return err
		}
	}
	return d.err
}

// put writes the object, which is as the store has it afterwards.
func (r *reconciler) put(ctx context.Context, j *job) error {
	j.object.Status.LastUpdated = time.Now().UTC()
	updated, err := r.store.Update(ctx, j.object)
	if err != nil {
		return err
	}
	j.object = updated
	return nil
}
