package lifecycle

import (
	"context"
	"maps"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/layerdisk"
)

// bases finds disks to take layers from.
type bases struct {
	objects  objects
	indexes  store.Indexes
	backends backends
	known    *contents
}

// contents are what is on disks, by the digests of their indexes. An index never changes, so each is read once.
type contents struct {
	mu    sync.Mutex
	disks map[digest.Digest]policy.Contents
}

func newContents() *contents { return &contents{disks: make(map[digest.Digest]policy.Contents)} }

// choice lists the sources that a disk takes layers from.
type choice struct {
	// start is what the volume is made from, nil for nothing.
	start *policy.Base
	// donors are the others.
	donors []policy.Base
	// asked is the number of disks there were to choose from.
	asked int
}

// choose the volume snapshots that save most of a plan (E-22).
//
// Only the owner's own image snapshots are looked at: a manifest may name any diff ID, and a tenant who wrote one with
// those of another's private layers would get their contents without ever having been let at them by a registry.
func (b bases) choose(ctx context.Context, s *imagesnapshot.ImageSnapshot, driver string, p Plan, sizeBytes int64) (choice, error) {
	list, err := b.objects.owned(ctx, s.Owner)
	if err != nil {
		return choice{}, err
	}
	var disks []policy.Candidate
	for _, o := range list { // by name, so of equal ones the first is the same each time
		base, ok := policy.BaseOf(o)
		if !ok || b.backends.name(o.Status.Driver) != driver {
			continue
		}
		c, err := b.contents(ctx, o)
		if err != nil {
			return choice{}, err
		}
		if len(c) > 0 {
			disks = append(disks, policy.Candidate{Base: base, Contents: c})
		}
	}
	if s.Spec.Size.AsNeeded {
		sizeBytes = 0
	}
	start, donors := policy.Choose(p.needs(), disks, sizeBytes)
	return choice{start, donors, len(disks)}, nil
}

// contents returns the contents of an image snapshot's disk, or nothing if the disk is of no use.
func (b bases) contents(ctx context.Context, o *imagesnapshot.ImageSnapshot) (policy.Contents, error) {
	id := o.Status.Identity.IndexDigest
	b.known.mu.Lock()
	defer b.known.mu.Unlock()
	if c, ok := b.known.disks[id]; ok {
		return c, nil
	}
	encoded, err := b.indexes.GetIndex(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ix, err := layerdisk.Parse(encoded)
	if err != nil {
		log.G(ctx).WithError(err).WithField("image_snapshot", o.Name).Warn("index in the store is unreadable")
		return nil, nil
	}
	c := policy.ContentsOf(ix)
	b.known.disks[id] = c
	return c, nil
}

// forget the contents of disks but for those that are wanted.
func (c *contents) forget(wanted map[digest.Digest]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.disks, func(d digest.Digest, _ policy.Contents) bool { return !wanted[d] })
}

// needs are the layers of a plan.
func (p Plan) needs() policy.Needs {
	var diffIDs []digest.Digest
	for _, l := range p.Layers {
		diffIDs = append(diffIDs, l.DiffID)
	}
	return policy.NeedsOf(diffIDs, p.Chains)
}

// blobBytes of its layers.
func (p Plan) blobBytes() []int64 {
	var sizes []int64
	for _, l := range p.Layers {
		sizes = append(sizes, l.BlobBytes)
	}
	return sizes
}
