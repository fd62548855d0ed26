package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
)

// removing takes down what is not needed any more.
type removing struct {
	names    names
	backends backends
	disposal disposal
}

// cleanup deletes what the work does not need any more, and ends it. What is in use is tried again until it is not.
func (r *removing) cleanup(ctx context.Context, j *job) (decision, error) {
	w := j.work()
	left, err := r.disposal.discard(ctx, w.Garbage)
	if ctx.Err() != nil {
		return decision{}, errors.Join(ctx.Err(), err)
	}
	d := write()
	if err == nil {
		j.object.Status.Work, d.unused = nil, true
		return d, nil
	}
	now := time.Now().UTC()
	w.Garbage = left
	w.Failures++
	w.NotBefore = now.Add(retryAfter(w.Failures))
	j.object.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, "clean up: "+imagesnapshot.Redact(err.Error()))
	return d, nil
}

// takeDown deletes everything that an image snapshot has, and then the object. Nothing is journalled: what it has
// follows from the object, which stays as it is until the end but for what the user is told.
func (r *removing) takeDown(ctx context.Context, j *job) (decision, error) {
	s := j.object
	if _, err := r.disposal.discard(ctx, everything(s, r.names, r.backends)); err != nil {
		return decision{write: tellWhatHolds(s, err), err: fmt.Errorf("take image snapshot %s down: %w", s.Name, err)}, nil
	}
	return decision{
		remove: true, unused: true, next: whenChanged(),
		told: func(o Observer) { o.Ended(EndingDeleted, s.Status.Reason) },
	}, nil
}

// tellWhatHolds says in the object why it is not gone yet, once for each reason: every write has it looked at again at
// once.
func tellWhatHolds(s *imagesnapshot.ImageSnapshot, err error) (changed bool) {
	message := imagesnapshot.Shorten("cannot be deleted yet: " + imagesnapshot.Redact(err.Error()))
	if errors.Is(err, context.Canceled) || blockdev.Retryable(err) || s.Status.Message == message {
		return false
	}
	s.Status.Message = message
	s.AddEvent(time.Now().UTC(), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, message)
	return true
}
