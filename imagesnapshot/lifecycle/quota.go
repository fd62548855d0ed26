package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
)

// quotas keeps owners within the limits.
type quotas struct {
	objects objects
	limits  imagesnapshot.Limits
	// mu makes counting an owner's image snapshots and adding or eliminating one a single thing.
	mu sync.Mutex
}

// admit adds s to its owner's by calling add, if there is room for one more or somebody who can make room. With
// existing, which runs first, add is not called if that gives an object.
func (q *quotas) admit(ctx context.Context, s *imagesnapshot.ImageSnapshot,
	existing, add func() (*imagesnapshot.ImageSnapshot, error),
) (object *imagesnapshot.ImageSnapshot, found bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if have, err := existing(); err != nil || have != nil {
		return have, true, err
	}
	if err := q.check(ctx, s); err != nil {
		return nil, false, fmt.Errorf("create image snapshot %s: %w", s.Name, err)
	}
	object, err = add()
	return object, false, err
}

func (q *quotas) check(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	list, err := q.objects.owned(ctx, s.Owner)
	if err != nil {
		return err
	}
	list = append(list, s)
	for _, quota := range policy.Quotas(q.limits, s.Origin) {
		// Those accepted before, that are still waiting for room, come first.
		if excess, victims := quota.Excess(list); excess > 0 && len(victims) < excess {
			return quota.Refusal()
		}
	}
	return nil
}

// makeRoom eliminates as many as are too many for s to begin, or says with ResourceExhausted that there is no room.
// Nothing is lost if it is repeated after a crash.
func (q *quotas) makeRoom(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, quota := range policy.Quotas(q.limits, s.Origin) {
		list, err := q.objects.owned(ctx, s.Owner)
		if err != nil {
			return err
		}
		excess, victims := quota.Excess(list)
		for _, v := range victims {
			if excess <= 0 {
				break
			}
			if err := q.eliminate(ctx, v, s.Name); err != nil {
				return err
			}
			excess--
		}
		if excess > 0 {
			return quota.Refusal()
		}
	}
	return nil
}

// eliminate v for the sake of another.
func (q *quotas) eliminate(ctx context.Context, v *imagesnapshot.ImageSnapshot, other string) error {
	_, err := q.objects.mutate(ctx, v.Name, v.ID, func(v *imagesnapshot.ImageSnapshot) error {
		return markDeleted(v, time.Now().UTC(), imagesnapshot.ReasonEliminated,
			fmt.Sprintf("made room for %s, being the least recently used", other))
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
