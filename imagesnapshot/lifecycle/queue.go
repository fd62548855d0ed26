package lifecycle

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot/store"
)

// queue has the image snapshots that something is to be done about, and calls reconcile for each: again when it
// changed, when reconcile asked for it, and later and later while reconcile fails.
type queue struct {
	// reconcile does all that can be done now for the image snapshot of a name and says when there is more; zero is
	// when it changes. It calls deleting once it knows that the image snapshot is to be deleted.
	reconcile func(ctx context.Context, name string, deleting func()) (next time.Time, err error)
	work      sync.WaitGroup

	mu    sync.Mutex
	tasks map[string]*task
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

// wait for all work to end. Its context has ended, so no other begins.
func (q *queue) wait() {
	q.mu.Lock()
	for _, t := range q.tasks {
		if t.timer != nil {
			t.timer.Stop()
		}
	}
	q.mu.Unlock()
	q.work.Wait()
}

// changed has the image snapshot looked at, at once if it is to be deleted.
func (q *queue) changed(ctx context.Context, c store.Change) {
	name := c.Object.Name
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.tasks[name]
	if c.Deleted {
		if t != nil && t.running {
			t.gone = true
		} else if t != nil {
			q.forget(name, t)
		}
		return
	}
	if t == nil {
		t = &task{}
		q.tasks[name] = t
	}
	if t.running {
		t.again, t.gone = true, false
		if !c.Object.DeletionRequested.IsZero() && !t.deleting {
			t.cancel(errDeletionAsked)
		}
		return
	}
	q.start(ctx, name, t)
}

// start runs the goroutine of a task. The queue is locked.
func (q *queue) start(ctx context.Context, name string, t *task) {
	if ctx.Err() != nil {
		return
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	t.running, t.again, t.gone, t.deleting = true, false, false, false
	taskCtx, cancel := context.WithCancelCause(ctx)
	t.cancel = cancel
	q.work.Go(func() {
		defer cancel(nil)
		next, err := q.reconcile(taskCtx, name, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			t.deleting = true
		})
		q.finished(ctx, name, t, next, err)
	})
}

// forget drops a task. The queue is locked.
func (q *queue) forget(name string, t *task) {
	if t.timer != nil {
		t.timer.Stop()
	}
	delete(q.tasks, name)
}

// finished decides when to look again.
func (q *queue) finished(ctx context.Context, name string, t *task, next time.Time, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t.running = false
	switch {
	case ctx.Err() != nil:
		return
	case t.gone, errdefs.IsNotFound(err) && !t.again:
		q.forget(name, t)
		return
	case err == nil && t.again:
		t.failures = 0
		q.start(ctx, name, t)
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
		q.mu.Lock()
		defer q.mu.Unlock()
		if !t.running && q.tasks[name] == t {
			q.start(ctx, name, t)
		}
	})
}
