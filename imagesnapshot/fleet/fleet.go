// Package fleet knows what the image snapshots of a store hold, and matches images against them.
package fleet

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
)

// Indexes has the encoded indexes of layer disks; a store.Indexes is one.
type Indexes interface {
	GetIndex(ctx context.Context, d digest.Digest) ([]byte, error)
}

// Fleet keeps a matcher.Index in step with a store. It is safe for concurrent use.
type Fleet struct {
	watcher store.Watcher
	indexes Indexes
	// attached gives the index digests of the disks that this node serves from.
	attached func() map[digest.Digest]bool
	index    *matcher.Index

	// mu guards what follows.
	mu sync.Mutex
	// known candidates by name.
	known map[string]known
}

type known struct {
	id       string
	index    digest.Digest
	attached bool
}

// New makes an empty one; Run fills it. attached is called for each match.
func New(w store.Watcher, ix Indexes, attached func() map[digest.Digest]bool) *Fleet {
	return &Fleet{watcher: w, indexes: ix, attached: attached, index: matcher.NewIndex(), known: make(map[string]known)}
}

// Run follows the store until ctx ends, and then returns nil. An error means that the store failed.
func (f *Fleet) Run(ctx context.Context) error {
	changes, err := f.watcher.Watch(ctx)
	if err != nil {
		return fmt.Errorf("follow image snapshots: %w", err)
	}
	for c := range changes {
		if err := f.take(ctx, c); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("image_snapshot", c.Object.Name).Warn("image snapshot cannot be matched")
		}
	}
	if ctx.Err() == nil {
		return fmt.Errorf("follow image snapshots: the store ended the watch: %w", errdefs.ErrUnavailable)
	}
	return nil
}

func (f *Fleet) take(ctx context.Context, c store.Change) error {
	candidate, err := f.candidate(ctx, c.Object)
	f.mu.Lock()
	defer f.mu.Unlock()
	// One of the same name with another ID is gone, whether that was told or not.
	if old, ok := f.known[c.Object.Name]; ok && (c.Deleted || old.id != c.Object.ID) {
		f.index.Remove(old.id)
		delete(f.known, c.Object.Name)
	}
	if c.Deleted {
		return nil
	}
	if err != nil {
		f.index.Remove(c.Object.ID)
		return err
	}
	k := f.known[c.Object.Name]
	candidate.Attached = k.attached
	f.known[c.Object.Name] = known{id: c.Object.ID, index: c.Object.Status.Identity.IndexDigest, attached: k.attached}
	return f.index.Put(candidate)
}

// candidate is what the matcher needs to know. Of one that was not built yet only the names of the images are known, which is
// enough to say that it is not ready.
func (f *Fleet) candidate(ctx context.Context, s *imagesnapshot.ImageSnapshot) (matcher.Candidate, error) {
	c := matcher.Candidate{
		Name: s.Name, ID: s.ID, Created: s.Status.Ready, SizeBytes: s.Status.DiskBytes, State: string(s.Status.Phase), Expires: s.Status.Expires,
	}
	d := s.Status.Identity.IndexDigest
	if d == "" {
		for _, ref := range s.Spec.Images {
			c.Images = append(c.Images, matcher.CandidateImage{Reference: ref})
		}
		return c, nil
	}
	encoded, err := f.indexes.GetIndex(ctx, d)
	if err != nil {
		return c, fmt.Errorf("get index of its disk: %w", err)
	}
	ix, _, err := layerdisk.ParseIdentified(encoded)
	if err != nil {
		return c, fmt.Errorf("read index of its disk: %w", err)
	}
	c.Images, c.Layers = matcher.Content(ix)
	return c, nil
}

// Match is matcher.Index's, with the disks that are attached now.
func (f *Fleet) Match(r matcher.Request) (matcher.Decision, error) {
	attached := f.attached()
	f.mu.Lock()
	for name, k := range f.known {
		if now := k.index != "" && attached[k.index]; now != k.attached {
			k.attached = now
			f.known[name] = k
			f.index.SetAttached(k.id, now)
		}
	}
	f.mu.Unlock()
	return f.index.Match(r)
}
