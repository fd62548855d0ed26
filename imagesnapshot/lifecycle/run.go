package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/internal/backoff"
)

// queue has the image snapshots that something is to be done about.
type queue struct {
	mu    sync.Mutex
	tasks map[string]*task
	work  sync.WaitGroup
}

// task is one image snapshot. One goroutine at a time works on it.
type task struct {
	running bool
	// again says that it changed since the goroutine began.
	again bool
	// gone says that the object was deleted since the goroutine began.
	gone bool
	// deleting says that the goroutine knows that it is to be deleted.
	deleting bool
	cancel   context.CancelCauseFunc
	timer    *time.Timer
	// failures in a row of the goroutine.
	failures int
}

// errDeletionAsked ends what is going on for an image snapshot that is to be deleted.
var errDeletionAsked = errors.New("its deletion was asked for")

// Run works until ctx ends, and then returns nil when everything it started has stopped; what was going on is taken up
// by the next Run. An error means that the store failed, and nothing runs any more then either. There must be one Run
// at a time for a store.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer e.queue.work.Wait()
	defer e.stopTimers()
	defer cancel()
	changes, err := e.Watcher.Watch(ctx)
	if err != nil {
		return fmt.Errorf("run image snapshot life cycle: %w", err)
	}
	sweep := time.NewTicker(e.Times.Sweep)
	defer sweep.Stop()
	flush := time.NewTicker(e.Times.FlushMatches)
	defer flush.Stop()
	e.queue.work.Go(func() { e.sweepAndLog(ctx, true) })
	for {
		select {
		case c, ok := <-changes:
			if !ok && ctx.Err() == nil {
				return fmt.Errorf("run image snapshot life cycle: the store ended the watch: %w", errdefs.ErrUnavailable)
			}
			if ok {
				e.changed(ctx, c)
			}
		case <-sweep.C:
			e.queue.work.Go(func() { e.sweepAndLog(ctx, false) })
		case <-flush.C:
			if err := e.flushMatches(ctx); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).Warn("matches not recorded")
			}
		case <-ctx.Done():
			const lastWrites = 5 * time.Second
			last, done := context.WithTimeout(context.WithoutCancel(ctx), lastWrites)
			defer done()
			if err := e.flushMatches(last); err != nil {
				log.G(ctx).WithError(err).Warn("matches not recorded")
			}
			return nil
		}
	}
}

func (e *Engine) stopTimers() {
	e.queue.mu.Lock()
	defer e.queue.mu.Unlock()
	for _, t := range e.queue.tasks {
		if t.timer != nil {
			t.timer.Stop()
		}
	}
}

// changed has the image snapshot looked at, at once if it is to be deleted.
func (e *Engine) changed(ctx context.Context, c store.Change) {
	name := c.Object.Name
	e.queue.mu.Lock()
	defer e.queue.mu.Unlock()
	t := e.queue.tasks[name]
	if c.Deleted {
		if t != nil && t.running {
			t.gone = true
		} else if t != nil {
			e.forget(name, t)
		}
		return
	}
	if t == nil {
		t = &task{}
		e.queue.tasks[name] = t
	}
	if t.running {
		t.again, t.gone = true, false
		if !c.Object.DeletionRequested.IsZero() && !t.deleting {
			t.cancel(errDeletionAsked)
		}
		return
	}
	e.start(ctx, name, t)
}

// start runs the goroutine of a task. The queue is locked.
func (e *Engine) start(ctx context.Context, name string, t *task) {
	if ctx.Err() != nil {
		return
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	t.running, t.again, t.gone, t.deleting = true, false, false, false
	taskCtx, cancel := context.WithCancelCause(ctx)
	t.cancel = cancel
	e.queue.work.Go(func() {
		defer cancel(nil)
		next, err := e.reconcile(taskCtx, name, t)
		e.finished(ctx, name, t, next, err)
	})
}

// forget drops a task. The queue is locked.
func (e *Engine) forget(name string, t *task) {
	if t.timer != nil {
		t.timer.Stop()
	}
	delete(e.queue.tasks, name)
}

// Waits after an image snapshot's work failed for a reason that may pass.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = time.Minute
)

func retryAfter(failures int) time.Duration {
	return backoff.Doubling{First: firstRetry, Most: lastRetry}.After(failures)
}

// finished decides when to look again.
func (e *Engine) finished(ctx context.Context, name string, t *task, next time.Time, err error) {
	e.queue.mu.Lock()
	defer e.queue.mu.Unlock()
	t.running = false
	switch {
	case ctx.Err() != nil:
		return
	case t.gone, errdefs.IsNotFound(err) && !t.again:
		e.forget(name, t)
		return
	case err == nil && t.again:
		t.failures = 0
		e.start(ctx, name, t)
		return
	case err != nil:
		log.G(ctx).WithError(err).WithField("image_snapshot", name).Warn("work on image snapshot did not succeed; it is tried again")
		next = time.Now().Add(retryAfter(t.failures))
		t.failures++
	default:
		t.failures = 0
	}
	if next.IsZero() {
		return
	}
	t.timer = time.AfterFunc(time.Until(next), func() {
		e.queue.mu.Lock()
		defer e.queue.mu.Unlock()
		if !t.running && e.queue.tasks[name] == t {
			e.start(ctx, name, t)
		}
	})
}

// run is the work on one image snapshot in one goroutine.
type run struct {
	*Engine
	task *task
	// slot says that it holds a place among the builds.
	slot bool
}

// reconcile does all that can be done now for one image snapshot and says when there is more; zero is when it changes.
func (e *Engine) reconcile(ctx context.Context, name string, t *task) (next time.Time, err error) {
	r := &run{Engine: e, task: t}
	defer r.releaseSlot()
	for {
		if cause := context.Cause(ctx); cause != nil {
			if errors.Is(cause, errDeletionAsked) {
				return time.Time{}, nil // the change that asked comes again
			}
			return time.Time{}, cause
		}
		s, err := e.Store.Get(ctx, name)
		if err != nil {
			return time.Time{}, err
		}
		next, done, err := r.step(ctx, s)
		switch {
		case errdefs.IsConflict(err), errors.Is(err, errSuperseded):
			continue // somebody else changed it: look again
		case errors.Is(context.Cause(ctx), errDeletionAsked):
			continue
		case err != nil || done:
			return next, err
		}
	}
}

// step takes the next step of an image snapshot. done says that there is none before next.
func (r *run) step(ctx context.Context, s *imagesnapshot.ImageSnapshot) (next time.Time, done bool, err error) {
	switch s.Status.Phase { //nolint:exhaustive // the others go by their work
	case imagesnapshot.PhaseDeleting:
		r.queue.mu.Lock()
		r.task.deleting = true
		r.queue.mu.Unlock()
		return r.takeDown(ctx, s)
	case imagesnapshot.PhasePending:
		return r.begin(ctx, s)
	}
	if w := s.Status.Work; w != nil {
		now, wait := time.Now(), w.NotBefore
		overdue := w.Step != imagesnapshot.StepCleanup && !w.Deadline.IsZero() && !now.Before(w.Deadline)
		if now.Before(wait) && !overdue {
			if w.Step == imagesnapshot.StepCleanup {
				// What is only to be cleaned up keeps nobody from expiring.
				n, done, err := r.age(ctx, s)
				return earlier(n, wait), done, err
			}
			return earlier(w.Deadline, wait), true, nil
		}
		return r.work(ctx, s)
	}
	return r.age(ctx, s)
}

// earlier of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// acquireSlot waits for a place among the builds.
func (r *run) acquireSlot(ctx context.Context) error {
	if r.slot {
		return nil
	}
	select {
	case r.slots <- struct{}{}:
		r.slot = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *run) releaseSlot() {
	if r.slot {
		<-r.slots
		r.slot = false
	}
}

// put writes what a step has decided.
func (r *run) put(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	s.Status.LastUpdated = time.Now().UTC()
	_, err := r.Store.Update(ctx, s)
	return err
}
