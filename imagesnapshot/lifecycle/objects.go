package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// errSuperseded says that an image snapshot is another one by now.
var errSuperseded = fmt.Errorf("image snapshot was deleted meanwhile: %w", errdefs.ErrNotFound)

// errUnchanged ends a change that has nothing to write.
var errUnchanged = errors.New("nothing to change")

// objects are the image snapshots of a store.
type objects struct{ store store.Store }

// find by name or ID. A name wins.
func (o objects) find(ctx context.Context, nameOrID string) (*imagesnapshot.ImageSnapshot, error) {
	s, err := o.store.Get(ctx, nameOrID)
	if !errdefs.IsNotFound(err) {
		return s, err
	}
	if nameOrID != "" {
		list, listErr := o.store.List(ctx, store.Filter{ID: nameOrID})
		if listErr != nil {
			return nil, listErr
		}
		if len(list) > 0 {
			return list[0], nil
		}
	}
	return nil, err
}

// mutate changes the object of a name and ID, again and again until nobody else changed it in between. change may be
// called several times; its error ends it. After errUnchanged nothing is written, and the object is returned as it is.
func (o objects) mutate(ctx context.Context, name, id string, change func(*imagesnapshot.ImageSnapshot) error) (*imagesnapshot.ImageSnapshot, error) {
	for {
		s, err := o.store.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		if s.ID != id {
			return nil, errSuperseded
		}
		err = change(s)
		if errors.Is(err, errUnchanged) {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		updated, err := o.store.Update(ctx, s)
		if !errdefs.IsConflict(err) {
			return updated, err
		}
	}
}

// owned are those of an owner.
func (o objects) owned(ctx context.Context, owner string) ([]*imagesnapshot.ImageSnapshot, error) {
	return o.store.List(ctx, store.Filter{Owner: &owner})
}
