package policy

import (
	"cmp"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/layerdisk"
)

// Base is a volume snapshot that a disk may be started from (E-22).
type Base struct {
	// Name of the image snapshot that it belongs to.
	Name string
	// VolumeSnapshotID of the one to copy.
	VolumeSnapshotID string
	// SizeBytes of the volume snapshot, and WantedBytes that its volume was asked for with: storage may round up.
	SizeBytes, WantedBytes int64
}

// BaseOf is what a disk can be started from of an image snapshot; ok is false if it has no volume snapshot that can be
// copied.
func BaseOf(s *imagesnapshot.ImageSnapshot) (base Base, ok bool) {
	if !s.DeletionRequested.IsZero() || s.Status.Identity.IndexDigest == "" {
		return Base{}, false
	}
	switch s.Status.Phase {
	case imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdating, imagesnapshot.PhaseUpdateFailed:
	default:
		return Base{}, false
	}
	for _, v := range s.Status.VolumeSnapshots {
		if v.Ready && v.Kind == imagesnapshot.VolumeSnapshotStandard {
			// Not every storage tells the size of a volume snapshot.
			size := cmp.Or(v.SizeBytes, s.Status.VolumeBytes)
			return Base{Name: s.Name, VolumeSnapshotID: v.ID, SizeBytes: size, WantedBytes: cmp.Or(s.Status.VolumeBytes, size)}, true
		}
	}
	return Base{}, false
}

// Needs is what images consist of.
type Needs struct {
	diffIDs, chains map[digest.Digest]bool
}

// NeedsOf the layers with these diff IDs and the stacks with these chain IDs.
func NeedsOf(diffIDs, chains []digest.Digest) Needs {
	n := Needs{make(map[digest.Digest]bool), make(map[digest.Digest]bool)}
	for _, d := range diffIDs {
		n.diffIDs[d] = true
	}
	for _, c := range chains {
		n.chains[c] = true
	}
	return n
}

// Shared is how many unpacked bytes of a disk are needed, and how many it has. A layer that is bound to its stack is
// needed only with the same stack below it.
func (n Needs) Shared(ix *layerdisk.Index) (common, total int64) {
	bound := make(map[int]bool)
	for _, c := range ix.Chains {
		if n.chains[c.ChainID] {
			bound[c.Layer] = true
		}
	}
	for _, l := range ix.Layers {
		total += l.UnpackedBytes
		if !l.StackBound && n.diffIDs[l.DiffID] || l.StackBound && bound[l.Number] {
			common += l.UnpackedBytes
		}
	}
	return common, total
}

// Worthwhile wants a base of which at least half is needed: the rest is carried along, in every copy and for ever.
func Worthwhile(common, total int64) bool { return common > 0 && common >= total-common }
