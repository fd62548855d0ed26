package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/matcher"
	"berth.dev/berth/matcher/dialect"
)

const (
	// DefaultPage is for requests that do not say how many image snapshots they want.
	DefaultPage = 100
	// MaxPage bounds the image snapshots of one answer: a thousand without events are about two megabytes.
	MaxPage = 1000
	// MaxListedEvents bounds the events of one answer; each has up to imagesnapshot.MaxMessageBytes of text.
	MaxListedEvents = 1000
)

// Lifecycle makes image snapshots happen. *lifecycle.Engine says which errors there are.
type Lifecycle interface {
	Create(ctx context.Context, req lifecycle.CreateRequest) (lifecycle.CreateResult, error)
	EnsureAutomatic(ctx context.Context, req lifecycle.AutomaticRequest) (lifecycle.CreateResult, error)
	Find(ctx context.Context, nameOrID string) (*imagesnapshot.ImageSnapshot, error)
	Update(ctx context.Context, req lifecycle.UpdateRequest) (lifecycle.CreateResult, error)
	Delete(ctx context.Context, req lifecycle.DeleteRequest) (*imagesnapshot.ImageSnapshot, error)
}

// SnapshotReader lists image snapshots and tells what changes, as a store.Store and store.Watcher do.
type SnapshotReader interface {
	List(ctx context.Context, f store.Filter) ([]*imagesnapshot.ImageSnapshot, error)
	Watch(ctx context.Context) (<-chan store.Change, error)
}

// Fleet finds the best image snapshots for images, by what this node knows and what attaching costs it.
type Fleet interface {
	Match(r matcher.Request) (matcher.Decision, error)
}

// ImageSnapshots has the use cases of image snapshots. It is safe for concurrent use.
type ImageSnapshots struct {
	lifecycle Lifecycle
	reader    SnapshotReader
	fleet     Fleet
	dialects  dialect.Table
	// lists is nil if no access lists are kept.
	lists AccessLists
	// closed ends all watches.
	closed chan struct{}
	once   sync.Once
}

// NewImageSnapshots serves the image snapshots of one store. Annotations are read in the dialects.
func NewImageSnapshots(l Lifecycle, r SnapshotReader, f Fleet, dialects dialect.Table) *ImageSnapshots {
	return &ImageSnapshots{lifecycle: l, reader: r, fleet: f, dialects: dialects, closed: make(chan struct{})}
}

// Close ends all watches, now and later; everything else goes on.
func (s *ImageSnapshots) Close() { s.once.Do(func() { close(s.closed) }) }

// SnapshotFilter chooses image snapshots; empty fields choose all.
type SnapshotFilter struct {
	// NameOrID of the only one.
	NameOrID string
	// Owner, if not nil, is the one owner.
	Owner  *string
	Labels map[string]string
}

func (f SnapshotFilter) store() store.Filter { return store.Filter{Owner: f.Owner, Labels: f.Labels} }

// Create accepts an image snapshot.
func (s *ImageSnapshots) Create(ctx context.Context, req lifecycle.CreateRequest) (lifecycle.CreateResult, error) {
	return s.lifecycle.Create(ctx, req)
}

// EnsureAutomatic finds the automatic image snapshot for a set of images, or accepts it.
func (s *ImageSnapshots) EnsureAutomatic(ctx context.Context, req lifecycle.AutomaticRequest) (lifecycle.CreateResult, error) {
	return s.lifecycle.EnsureAutomatic(ctx, req)
}

// Get finds by name or ID; errdefs.ErrNotFound.
func (s *ImageSnapshots) Get(ctx context.Context, nameOrID string) (*imagesnapshot.ImageSnapshot, error) {
	if nameOrID == "" {
		return nil, &imagesnapshot.FieldError{Field: "nameOrId", Detail: "is empty: name an image snapshot"}
	}
	found, err := s.lifecycle.Find(ctx, nameOrID)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("there is no image snapshot %.160q: %w", nameOrID, errdefs.ErrNotFound)
	}
	return found, err
}

// Update takes a new spec.
func (s *ImageSnapshots) Update(ctx context.Context, req lifecycle.UpdateRequest) (lifecycle.CreateResult, error) {
	if _, err := s.Get(ctx, req.NameOrID); err != nil {
		return lifecycle.CreateResult{}, err
	}
	return s.lifecycle.Update(ctx, req)
}

// Delete marks for being taken down.
func (s *ImageSnapshots) Delete(ctx context.Context, req lifecycle.DeleteRequest) (*imagesnapshot.ImageSnapshot, error) {
	if _, err := s.Get(ctx, req.NameOrID); err != nil {
		return nil, err
	}
	return s.lifecycle.Delete(ctx, req)
}

// List gives a page of image snapshots by name, from the first one behind token on, and the token of the next page,
// empty if this is the last. A size of 0 is DefaultPage.
func (s *ImageSnapshots) List(ctx context.Context, f SnapshotFilter, size int, token string) ([]*imagesnapshot.ImageSnapshot, string, error) {
	if size < 0 || size > MaxPage {
		return nil, "", &imagesnapshot.FieldError{Field: "pageSize", Detail: fmt.Sprintf("%d is not from 0 to %d", size, MaxPage)}
	}
	list, err := s.all(ctx, f)
	if err != nil {
		return nil, "", err
	}
	first, found := slices.BinarySearchFunc(list, token, func(o *imagesnapshot.ImageSnapshot, name string) int { return cmp.Compare(o.Name, name) })
	if found {
		first++
	}
	list = list[first:]
	if size = cmp.Or(size, DefaultPage); len(list) <= size {
		return list, "", nil
	}
	return list[:size], list[size-1].Name, nil
}

// all that a filter lets through, by name.
func (s *ImageSnapshots) all(ctx context.Context, f SnapshotFilter) ([]*imagesnapshot.ImageSnapshot, error) {
	if f.NameOrID == "" {
		return s.reader.List(ctx, f.store())
	}
	found, err := s.Get(ctx, f.NameOrID)
	if err != nil {
		return nil, err
	}
	if !f.store().Match(found) {
		return nil, nil
	}
	return []*imagesnapshot.ImageSnapshot{found}, nil
}
