package lifecycle

import (
	"context"
	"time"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
)

// step is one step of the life of an image snapshot. It does something outside the store that can be repeated, changes
// job.object, and says what is to be written. It never writes job.object itself.
//
// A step ends work with failure, and reports storage that refused with storageError. Other errors are those of the
// store or of ctx, after which the step is repeated.
type step func(ctx context.Context, j *job) (decision, error)

// job is the image snapshot that a step is for.
type job struct {
	object *imagesnapshot.ImageSnapshot
	// backend that the work is in, and driver its name. Steps that have no work do not get them.
	backend Backend
	driver  string
	// place among the builds, for the steps that need one.
	place *place
}

func (j *job) work() *imagesnapshot.Work { return j.object.Status.Work }

// decision is the result of a step.
type decision struct {
	// write says that job.object is to be written, remove that it is to be deleted from the store.
	write, remove bool
	// index, if not nil, is to be kept first: what is written refers to it.
	index []byte
	// then is the rest of the step: what it may only do when its intention is written.
	then step
	// told reports to the observer after the decision is written.
	told func(Observer)
	// unused says that there may be indexes now that nothing refers to.
	unused bool
	// err makes the step run again, after longer and longer waits.
	err error
	// next is when to take the next step.
	next next
}

// next is when the next step of an image snapshot is to be taken.
type next struct {
	now bool
	at  time.Time
}

// now is at once.
func now() next { return next{now: true} }

// at a time; zero is whenChanged.
func at(t time.Time) next { return next{at: t} }

// whenChanged is when somebody else changes the image snapshot.
func whenChanged() next { return next{} }

// orAt is at t if that is earlier.
func (n next) orAt(t time.Time) next {
	if !n.now {
		n.at = policy.Earlier(n.at, t)
	}
	return n
}

// wait decides that there is nothing to do before n.
func wait(n next) decision { return decision{next: n} }

// write decides that job.object has changed, and that the next step follows at once.
func write() decision { return decision{write: true, next: now()} }

// failure ends the work without success.
type failure struct {
	reason  imagesnapshot.Reason
	message string
}

func (f *failure) Error() string { return string(f.reason) + ": " + f.message }

// storageError is what storage answered that the work is in. It may pass.
type storageError struct{ err error }

func (e *storageError) Error() string { return e.err.Error() }

func (e *storageError) Unwrap() error { return e.err }

// places are those among the builds.
type places chan struct{}

// place is the place of one image snapshot among the builds, if it has one. One goroutine uses it.
type place struct {
	all  places
	held bool
}

// take waits for it.
func (p *place) take(ctx context.Context) error {
	if p.held {
		return nil
	}
	select {
	case p.all <- struct{}{}:
		p.held = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave lets another build begin.
func (p *place) leave() {
	if p.held {
		<-p.all
		p.held = false
	}
}
