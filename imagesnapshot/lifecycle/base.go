package lifecycle

import (
	"cmp"
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/layerdisk"
)

// base is a disk to start from.
type base struct {
	name, snapshotID string
	// sizeBytes of the volume snapshot, wantedBytes the size that its volume was asked for with: storage may round up.
	sizeBytes, wantedBytes int64
	// shared are the unpacked bytes of layers that need neither be fetched nor written.
	shared int64
}

// chooseBase finds the volume snapshot that shares most bytes with a plan (E-22), nil if none is worth it.
//
// Only the owner's own image snapshots are looked at: a manifest may name any diff ID, and a tenant who wrote one with
// those of another's private layers would get their contents without ever having been let at them by a registry.
func (r *run) chooseBase(ctx context.Context, s *imagesnapshot.ImageSnapshot, p Plan, sizeBytes int64) (*base, error) {
	list, err := r.Store.List(ctx, store.Filter{Owner: &s.Owner})
	if err != nil {
		return nil, err
	}
	diffIDs, chains := make(map[digest.Digest]bool), make(map[digest.Digest]bool)
	for _, l := range p.Layers {
		diffIDs[l.DiffID] = true
	}
	for _, c := range p.Chains {
		chains[c] = true
	}
	var best *base
	for _, o := range list { // by name, so of equal ones the first is the same each time
		c := r.candidate(o, r.driverName(s.Status.Work.Driver))
		if c == nil || !s.Spec.Size.AsNeeded && c.wantedBytes > sizeBytes {
			continue // a volume is never smaller than what it is made from
		}
		encoded, err := r.Indexes.GetIndex(ctx, o.Status.Identity.IndexDigest)
		if err != nil {
			if !errdefs.IsNotFound(err) {
				return nil, err
			}
			continue
		}
		ix, err := layerdisk.Parse(encoded)
		if err != nil {
			log.G(ctx).WithError(err).WithField("image_snapshot", o.Name).Warn("index in the store is unreadable")
			continue
		}
		var total int64
		if c.shared, total = shared(ix, diffIDs, chains); worthwhile(c.shared, total) && (best == nil || c.shared > best.shared) {
			best = c
		}
	}
	return best, nil
}

// candidate is the disk of an image snapshot, nil if it has none that can be copied within the driver's storage.
func (r *run) candidate(o *imagesnapshot.ImageSnapshot, driver string) *base {
	if !o.DeletionRequested.IsZero() || o.Status.Identity.IndexDigest == "" || r.driverName(o.Status.Driver) != driver {
		return nil
	}
	switch o.Status.Phase {
	case imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdating, imagesnapshot.PhaseUpdateFailed:
	default:
		return nil
	}
	for _, v := range o.Status.VolumeSnapshots {
		if v.Ready && v.Kind == imagesnapshot.VolumeSnapshotStandard {
			// Not every storage tells the size of a volume snapshot.
			size := cmp.Or(v.SizeBytes, o.Status.VolumeBytes)
			return &base{name: o.Name, snapshotID: v.ID, sizeBytes: size, wantedBytes: cmp.Or(o.Status.VolumeBytes, size)}
		}
	}
	return nil
}

// shared sums up the layers of a disk that a plan needs, and all of them. A layer that is bound to its stack counts
// only with the same stack below it.
func shared(ix *layerdisk.Index, diffIDs, chains map[digest.Digest]bool) (common, total int64) {
	bound := make(map[int]bool)
	for _, c := range ix.Chains {
		if chains[c.ChainID] {
			bound[c.Layer] = true
		}
	}
	for _, l := range ix.Layers {
		total += l.UnpackedBytes
		if !l.StackBound && diffIDs[l.DiffID] || l.StackBound && bound[l.Number] {
			common += l.UnpackedBytes
		}
	}
	return common, total
}

// worthwhile wants a disk of which at least half is needed: the rest would be carried along, in every copy and for
// ever.
func worthwhile(common, total int64) bool { return common > 0 && common >= total-common }
