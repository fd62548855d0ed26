package matcher

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// Index holds the candidates of a fleet. All methods may be called at the same time; a change waits for the matches under way.
type Index struct {
	// mu guards everything below but scratches.
	mu      sync.RWMutex
	records []*record // by slot, nil where free
	free    []uint32
	byID    map[string]uint32
	byName  map[string][]uint32

	chains, diffs, blobs           postings // of layers
	references, manifests, indexes postings // of images

	scratches sync.Pool // of *scratch
}

// record is a candidate in the form that is kept: without the text of its layers' digests, which would need several times
// the memory of their keys.
type record struct {
	name, id    string
	created     time.Time
	state       string
	expires     time.Time
	unreachable string
	attached    bool
	images      []CandidateImage
	platforms   []Platform // of the images, each once
	layers      []layerRecord
}

type layerRecord struct {
	chain, diff, blob          key
	hasChain, hasDiff, hasBlob bool
	compressed, unpacked       int64
}

// NewIndex makes an empty index.
func NewIndex() *Index {
	return &Index{
		byID: make(map[string]uint32), byName: make(map[string][]uint32),
		chains: newPostings(), diffs: newPostings(), blobs: newPostings(),
		references: newPostings(), manifests: newPostings(), indexes: newPostings(),
	}
}

// Put adds a candidate or replaces the one with the same ID. It copies what it needs. The error
// says what is wrong with the candidate; the index is as before then.
func (x *Index) Put(c Candidate) error {
	if err := c.validate(); err != nil {
		return err
	}
	r := newRecord(&c)
	x.mu.Lock()
	defer x.mu.Unlock()
	slot, known := x.byID[r.id]
	if known {
		if old := x.records[slot]; old.name == r.name && old.sameContent(r) {
			x.records[slot] = r // only its state changed, which is what happens most
			return nil
		}
		x.remove(slot)
	}
	return x.add(r)
}

// Remove takes out the candidate with this ID and tells whether there was one.
func (x *Index) Remove(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	slot, ok := x.byID[id]
	if ok {
		x.remove(slot)
	}
	return ok
}

// SetAttached says that the disk of the candidate with this ID is now attached to this node, or no longer. It tells whether
// there is such a candidate.
func (x *Index) SetAttached(id string, attached bool) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	slot, ok := x.byID[id]
	if ok {
		x.records[slot].attached = attached
	}
	return ok
}

// Len is the number of candidates.
func (x *Index) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.byID)
}

func newRecord(c *Candidate) *record {
	r := &record{
		name: c.Name, id: c.ID, created: c.Created, state: c.State, expires: c.Expires,
		unreachable: c.Unreachable, attached: c.Attached,
		images: slices.Clone(c.Images), layers: make([]layerRecord, len(c.Layers)),
	}
	for i := range c.Images {
		if p := c.Images[i].Platform; !slices.Contains(r.platforms, p) {
			r.platforms = append(r.platforms, p)
		}
	}
	for i := range c.Layers {
		l, to := &c.Layers[i], &r.layers[i]
		to.chain, to.hasChain = digestKey(l.ChainID)
		if !l.StackBound { // otherwise it is right on its own stack alone
			to.diff, to.hasDiff = digestKey(l.DiffID)
			to.blob, to.hasBlob = digestKey(l.Blob)
		}
		to.compressed, to.unpacked = l.CompressedBytes, l.UnpackedBytes
	}
	return r
}

func (r *record) sameContent(other *record) bool {
	return slices.Equal(r.images, other.images) && slices.Equal(r.layers, other.layers)
}

func (x *Index) add(r *record) error {
	var slot uint32
	if n := len(x.free); n > 0 {
		slot, x.free = x.free[n-1], x.free[:n-1]
	} else {
		if len(x.records) >= 1<<31-1 {
			return errors.New("the index is full: remove image snapshots that nobody needs")
		}
		slot = uint32(len(x.records))
		x.records = append(x.records, nil)
	}
	x.records[slot] = r
	x.byID[r.id] = slot
	x.byName[r.name] = append(x.byName[r.name], slot)
	x.each(r, slot, (*postings).add)
	return nil
}

func (x *Index) remove(slot uint32) {
	r := x.records[slot]
	x.each(r, slot, (*postings).remove)
	delete(x.byID, r.id)
	if named := slices.DeleteFunc(x.byName[r.name], func(s uint32) bool { return s == slot }); len(named) > 0 {
		x.byName[r.name] = named
	} else {
		delete(x.byName, r.name)
	}
	x.records[slot] = nil
	x.free = append(x.free, slot)
}

// each does something with every key of a record.
func (x *Index) each(r *record, slot uint32, do func(*postings, key, posting)) {
	for i := range r.images {
		img, p := &r.images[i], newPosting(slot, i)
		if img.Reference != "" {
			do(&x.references, stringKey(img.Reference), p)
		}
		if k, ok := digestKey(img.ManifestDigest); ok {
			do(&x.manifests, k, p)
		}
		if k, ok := digestKey(img.IndexDigest); ok {
			do(&x.indexes, k, p)
		}
	}
	for i := range r.layers {
		l, p := &r.layers[i], newPosting(slot, i)
		if l.hasChain {
			do(&x.chains, l.chain, p)
		}
		if l.hasDiff {
			do(&x.diffs, l.diff, p)
		}
		if l.hasBlob {
			do(&x.blobs, l.blob, p)
		}
	}
}
