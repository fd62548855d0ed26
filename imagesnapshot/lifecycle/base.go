package lifecycle

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/layerdisk"
)

// bases finds disks to start from.
type bases struct {
	objects  objects
	indexes  store.Indexes
	backends backends
}

// choose the volume snapshot that shares most bytes with a plan (E-22), nil if none is worth it.
//
// Only the owner's own image snapshots are looked at: a manifest may name any diff ID, and a tenant who wrote one with
// those of another's private layers would get their contents without ever having been let at them by a registry.
func (b bases) choose(ctx context.Context, s *imagesnapshot.ImageSnapshot, driver string, p Plan, sizeBytes int64) (*policy.Base, error) {
	list, err := b.objects.owned(ctx, s.Owner)
	if err != nil {
		return nil, err
	}
	needs := p.needs()
	var best *policy.Base
	var most int64
	for _, o := range list { // by name, so of equal ones the first is the same each time
		base, ok := policy.BaseOf(o)
		if !ok || b.backends.name(o.Status.Driver) != driver || !s.Spec.Size.AsNeeded && base.WantedBytes > sizeBytes {
			continue // a volume is never smaller than what it is made from
		}
		ix, err := b.index(ctx, o)
		if err != nil {
			return nil, err
		}
		if ix == nil {
			continue
		}
		if common, total := needs.Shared(ix); policy.Worthwhile(common, total) && common > most {
			best, most = &base, common
		}
	}
	return best, nil
}

// index of an image snapshot's disk, nil if it is of no use.
func (b bases) index(ctx context.Context, o *imagesnapshot.ImageSnapshot) (*layerdisk.Index, error) {
	encoded, err := b.indexes.GetIndex(ctx, o.Status.Identity.IndexDigest)
	if errdefs.IsNotFound(err) {
		return nil, nil //nolint:nilnil // nothing can be taken over then
	}
	if err != nil {
		return nil, err
	}
	ix, err := layerdisk.Parse(encoded)
	if err != nil {
		log.G(ctx).WithError(err).WithField("image_snapshot", o.Name).Warn("index in the store is unreadable")
		return nil, nil //nolint:nilnil // as above
	}
	return ix, nil
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
