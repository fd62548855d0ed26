package policy

import (
	"cmp"
	"maps"
	"slices"

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
			// Not every storage reports the size of a volume snapshot.
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

// Contents are the layers of a disk.
type Contents []content

// content is one layer; chains are the stacks that it is at the top of, if it is bound to them.
type content struct {
	diffID digest.Digest
	bound  bool
	chains []digest.Digest
	bytes  int64
}

// ContentsOf returns the contents of a disk, or nothing if layers cannot be taken from its file system.
func ContentsOf(ix *layerdisk.Index) Contents {
	if ix.FileSystem != layerdisk.FileSystemEROFS {
		return nil
	}
	chains := make(map[int][]digest.Digest)
	for _, c := range ix.Chains {
		chains[c.Layer] = append(chains[c.Layer], c.ChainID)
	}
	var all Contents
	for _, l := range ix.Layers {
		c := content{diffID: l.DiffID, bound: l.StackBound, bytes: l.UnpackedBytes}
		if c.bound {
			c.chains = chains[l.Number]
		}
		all = append(all, c)
	}
	return all
}

// needs says whether a layer is needed. One that is bound to its stack is needed only with the same stack below it.
func (n Needs) needs(c content) bool {
	if !c.bound {
		return n.diffIDs[c.diffID]
	}
	return slices.ContainsFunc(c.chains, func(d digest.Digest) bool { return n.chains[d] })
}

// Shared is how many unpacked bytes of a disk are needed, and how many it has.
func (n Needs) Shared(disk Contents) (common, total int64) {
	for _, c := range disk {
		total += c.bytes
		if n.needs(c) {
			common += c.bytes
		}
	}
	return common, total
}

// without the layers that a disk has.
func (n Needs) without(disk Contents) Needs {
	left := Needs{maps.Clone(n.diffIDs), maps.Clone(n.chains)}
	for _, c := range disk {
		if !c.bound {
			delete(left.diffIDs, c.diffID)
		}
		for _, d := range c.chains {
			delete(left.chains, d)
		}
	}
	return left
}

// Worthwhile wants a base of which at least half is needed: the rest is carried along, in every copy and for ever.
func Worthwhile(common, total int64) bool { return common > 0 && common >= total-common }

// Candidate is a disk that layers may be taken from.
type Candidate struct {
	Base
	Contents Contents
}

// MaxDonors is how many disks layers are copied from at most: each is a volume made and attached for the build.
const MaxDonors = 4

// Choose what a disk starts from, nil for nothing, and which disks other layers are copied from: those that save most,
// of equal ones the first. A volume of fixedBytes cannot be made from a larger one; 0 is as large as needed. Layers
// without content are no reason to make a volume.
func Choose(n Needs, disks []Candidate, fixedBytes int64) (start *Base, donors []Base) {
	var most int64
	var first Contents
	for i, d := range disks {
		if fixedBytes > 0 && d.WantedBytes > fixedBytes {
			continue
		}
		if common, total := n.Shared(d.Contents); Worthwhile(common, total) && common > most {
			start, first, most = &disks[i].Base, d.Contents, common
		}
	}
	left := n.without(first)
	for len(donors) < MaxDonors {
		best, most := -1, int64(0)
		for i, d := range disks {
			if common, _ := left.Shared(d.Contents); common > most {
				best, most = i, common
			}
		}
		if best < 0 {
			break
		}
		donors = append(donors, disks[best].Base)
		left = left.without(disks[best].Contents)
	}
	return start, donors
}
