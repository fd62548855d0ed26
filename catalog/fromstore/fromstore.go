// Package fromstore is the catalog of the image snapshots in a store, for nodes that have the store itself.
package fromstore

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/catalog"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// Catalog is a catalog.Lister. There is nothing to publish: whoever changes the store does.
type Catalog struct {
	store   store.Store
	watcher store.Watcher
	indexes store.Indexes
	driver  string
	old     bool

	// mu guards cache, of the indexes that the entries of the last listing or change had.
	mu    sync.Mutex
	cache map[digest.Digest][]byte
}

var _ catalog.Lister = (*Catalog)(nil)

// Options of a Catalog.
type Options struct {
	// Driver is the name of the storage on nodes.
	Driver string
	// ServeOldDuringUpdate offers the old content while an update is under way or has failed (requirements 3.2).
	ServeOldDuringUpdate bool
}

// New makes the catalog of a store.
func New(s store.Store, w store.Watcher, i store.Indexes, o Options) *Catalog {
	return &Catalog{store: s, watcher: w, indexes: i, driver: o.Driver, old: o.ServeOldDuringUpdate, cache: make(map[digest.Digest][]byte)}
}

// List is of catalog.Lister.
func (c *Catalog) List(ctx context.Context) ([]catalog.Entry, error) {
	all, err := c.store.List(ctx, store.Filter{})
	if err != nil {
		return nil, fmt.Errorf("list catalog: %w", err)
	}
	entries := make([]catalog.Entry, 0, len(all))
	used := make(map[digest.Digest]bool)
	for _, s := range all {
		e, err := c.entry(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("list catalog: image snapshot %s: %w", s.Name, err)
		}
		used[e.Identity.IndexDigest] = true
		entries = append(entries, e)
	}
	c.forget(used)
	return entries, nil
}

// Watch is of catalog.Lister.
func (c *Catalog) Watch(ctx context.Context) (<-chan catalog.Change, error) {
	ctx, cancel := context.WithCancel(ctx)
	changes, err := c.watcher.Watch(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch catalog: %w", err)
	}
	out := make(chan catalog.Change)
	go func() {
		defer close(out)
		defer cancel()
		last := make(map[string]catalog.Entry)
		for change := range changes {
			for _, send := range c.translate(ctx, change, last) {
				select {
				case out <- send:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}

// translate gives what a change of the store is for a node: most are progress, which concerns none.
func (c *Catalog) translate(ctx context.Context, change store.Change, last map[string]catalog.Entry) (send []catalog.Change) {
	s := change.Object
	before, known := last[s.Name]
	removed := catalog.Change{Entry: catalog.Entry{Name: s.Name, ID: before.ID}, Removed: true}
	if change.Deleted {
		delete(last, s.Name)
		if known {
			send = append(send, removed)
		}
		return send
	}
	e, err := c.entry(ctx, s)
	if err != nil {
		log.G(ctx).WithError(err).WithField("image_snapshot", s.Name).Warn("image snapshot cannot be offered to nodes")
		return nil
	}
	if known && before.ID != e.ID {
		send = append(send, removed)
	}
	if known && same(before, e) {
		return send
	}
	last[s.Name] = e
	return append(send, catalog.Change{Entry: e})
}

// same ignores the index, which follows from the identity.
func same(a, b catalog.Entry) bool {
	return a.ID == b.ID && a.State == b.State && a.Created.Equal(b.Created) && a.Expires.Equal(b.Expires) && a.Identity == b.Identity &&
		a.SizeBytes == b.SizeBytes && a.Source.VolumeID == b.Source.VolumeID && slices.Equal(a.Source.SnapshotIDs, b.Source.SnapshotIDs)
}

func (c *Catalog) entry(ctx context.Context, s *imagesnapshot.ImageSnapshot) (catalog.Entry, error) {
	e := catalog.Entry{
		Name: s.Name, ID: s.ID, Owner: s.Owner, State: string(s.Status.Phase), Created: s.Status.Ready, Expires: s.Status.Expires,
		Origin: s.Origin, Images: s.Status.Images, Identity: s.Status.Identity,
		Source: catalog.Source{Driver: c.driver, VolumeID: s.Status.VolumeID},
	}
	if e.Created.IsZero() {
		e.Created = s.Created
	}
	if s.Status.VolumeID == "" {
		for _, v := range s.Status.Snapshots {
			e.SizeBytes = v.SizeBytes
			e.Source.SnapshotIDs = append(e.Source.SnapshotIDs, v.ID)
		}
	}
	usable := s.Clone()
	usable.Status.Expires = time.Time{} // the node looks at its own clock
	if usable.Usable(time.Now(), c.old) {
		e.State = catalog.StateAvailable
	}
	if e.Identity.IndexDigest == "" {
		return e, nil
	}
	var err error
	if e.Index, err = c.index(ctx, e.Identity.IndexDigest); errdefs.IsNotFound(err) && e.State != catalog.StateAvailable {
		err = nil // it is being taken down
	}
	return e, err
}

func (c *Catalog) index(ctx context.Context, d digest.Digest) ([]byte, error) {
	c.mu.Lock()
	have := c.cache[d]
	c.mu.Unlock()
	if have != nil {
		return have, nil
	}
	encoded, err := c.indexes.GetIndex(ctx, d)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cache[d] = encoded
	return encoded, nil
}

// forget drops the indexes that no entry has any more.
func (c *Catalog) forget(used map[digest.Digest]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for d := range c.cache {
		if !used[d] {
			delete(c.cache, d)
		}
	}
}
