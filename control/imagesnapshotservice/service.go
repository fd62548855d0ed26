// Package imagesnapshotservice has the use cases behind berth.imagesnapshot.v1: create, list, watch, update and delete
// image snapshots, keep their access lists, and say which of them match. It needs no node: a cluster's controller can
// serve it as a node's daemon does. server.go and the messages beside it are its thin gRPC adapter; the rest knows no
// gRPC.
package imagesnapshotservice

import (
	"context"
	"fmt"
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

// Engine carries out requests; a *lifecycle.Engine does, and says which errors there are.
type Engine interface {
	Create(ctx context.Context, req lifecycle.CreateRequest) (lifecycle.CreateResult, error)
	EnsureAutomatic(ctx context.Context, req lifecycle.AutomaticRequest) (lifecycle.CreateResult, error)
	Find(ctx context.Context, nameOrID string) (*imagesnapshot.ImageSnapshot, error)
	Update(ctx context.Context, req lifecycle.UpdateRequest) (lifecycle.CreateResult, error)
	Delete(ctx context.Context, req lifecycle.DeleteRequest) (*imagesnapshot.ImageSnapshot, error)
}

// Reader lists image snapshots and watches their changes, as a store.Store and a store.Watcher do.
type Reader interface {
	List(ctx context.Context, f store.Filter) ([]*imagesnapshot.ImageSnapshot, error)
	Watch(ctx context.Context) (<-chan store.Change, error)
}

// Fleet finds the best image snapshots for images, by what is known here and what attaching costs.
type Fleet interface {
	Match(r matcher.Request) (matcher.Decision, error)
}

// Service has the use cases of image snapshots. It is safe for concurrent use.
type Service struct {
	engine   Engine
	reader   Reader
	fleet    Fleet
	dialects dialect.Settings
	// lists is nil if no access lists are kept.
	lists AccessLists
	// closed ends all watches.
	closed chan struct{}
	once   sync.Once
}

// New serves the image snapshots of one store. Annotations are read as dialects
// says.
func New(e Engine, r Reader, f Fleet, dialects dialect.Settings) *Service {
	return &Service{engine: e, reader: r, fleet: f, dialects: dialects, closed: make(chan struct{})}
}

// Close ends all watches, now and later; everything else goes on.
func (s *Service) Close() { s.once.Do(func() { close(s.closed) }) }

// Filter chooses image snapshots; empty fields choose all.
type Filter struct {
	// NameOrID of the only one.
	NameOrID string
	// Owner, if not nil, is the one owner.
	Owner  *string
	Labels map[string]string
}

func (f Filter) store() store.Filter { return store.Filter{Owner: f.Owner, Labels: f.Labels} }

// Get finds an image snapshot by its name or ID. If there is none, the error is errdefs.ErrNotFound.
func (s *Service) Get(ctx context.Context, nameOrID string) (*imagesnapshot.ImageSnapshot, error) {
	if nameOrID == "" {
		return nil, &imagesnapshot.FieldError{Field: "name_or_id", Detail: "is empty: name an image snapshot"}
	}
	found, err := s.engine.Find(ctx, nameOrID)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("there is no image snapshot %.160q: %w", nameOrID, errdefs.ErrNotFound)
	}
	return found, err
}

// all image snapshots that the filter lets through, ordered by name.
func (s *Service) all(ctx context.Context, f Filter) ([]*imagesnapshot.ImageSnapshot, error) {
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
