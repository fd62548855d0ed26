package matcher

import (
	"fmt"
	"slices"
	"sync"
)

// Index holds the candidates of a fleet. All methods may be called at the same time; a change waits for the matches
// under way.
//
// A match looks at the images and layers of the request alone, so that it costs the same in a small fleet and in a
// large one.
type Index struct {
	// mu guards everything below but scratches.
	mu      sync.RWMutex
	records []record // by slot
	states  []state  // by slot
	free    []uint32 // slots
	byID    map[string]uint32
	byName  map[string][]uint32
	// platforms numbers the platforms that were ever seen, up to manyPlatforms.
	platforms []Platform

	content content

	scratches sync.Pool // of *scratch
}

// record is what explanations and changes need of a candidate.
type record struct {
	name, id    string
	state       string
	unreachable string
	images      []uint32
	layers      []uint32
}

// state is what every match needs of a candidate. It lies in one array, because a base image may be shared by
// thousands.
type state struct {
	created   int64 // microseconds since 1970
	expires   int64 // likewise, noExpiry for never
	platforms uint64
	ready     bool
	reachable bool
	attached  bool
	hasLayers bool
}

const (
	noExpiry = 1<<63 - 1
	// manyPlatforms is the bit of all platforms after the 63rd; it counts as fitting. Images exist for some thirty.
	manyPlatforms = 63
)

// layerRecord is a layer without the text of its digests, which would need several times the memory.
type layerRecord struct {
	chain, diff, blob          key
	hasChain, hasDiff, hasBlob bool
	compressed, unpacked       int64
}

// NewIndex makes an empty index.
func NewIndex() *Index {
	return &Index{byID: make(map[string]uint32), byName: make(map[string][]uint32)}
}

// Put adds a candidate or replaces the one with the same ID. It copies what it needs. The error says what is wrong with
// the candidate; the index is as before then.
func (x *Index) Put(c Candidate) error {
	if err := c.validate(); err != nil {
		return err
	}
	layers := layerRecords(c.Layers)
	x.mu.Lock()
	defer x.mu.Unlock()
	slot, known := x.byID[c.ID]
	if !known && len(x.free) == 0 && len(x.records) == maxNumber-1 || len(x.content.layers.things)+len(layers) >= maxNumber {
		return fmt.Errorf("candidate %q does not fit into the index: remove image snapshots that nobody needs", c.Name)
	}
	if known && x.records[slot].name == c.Name && x.sameContent(&x.records[slot], c.Images, layers) {
		x.describe(slot, &c) // only its state changed, which is what happens most
		return nil
	}
	if known {
		x.remove(slot)
	}
	x.add(&c, layers)
	return nil
}

// Remove removes the candidate with this ID and reports whether there was one.
func (x *Index) Remove(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	slot, ok := x.byID[id]
	if ok {
		x.remove(slot)
	}
	return ok
}

// SetAttached says that the disk of the candidate with this ID is now attached to this node, or no longer. It tells
// whether there is such a candidate.
func (x *Index) SetAttached(id string, attached bool) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	slot, ok := x.byID[id]
	if ok {
		x.states[slot].attached = attached
	}
	return ok
}

// SetUnreachable says why this node cannot attach the disk of the candidate with this ID now; empty if it can. It tells
// whether there is such a candidate.
func (x *Index) SetUnreachable(id, why string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	slot, ok := x.byID[id]
	if ok {
		x.records[slot].unreachable, x.states[slot].reachable = why, why == ""
	}
	return ok
}

// Len is the number of candidates.
func (x *Index) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.byID)
}

func layerRecords(layers []Layer) []layerRecord {
	records := make([]layerRecord, 0, len(layers))
	for i := range layers {
		l := &layers[i]
		var r layerRecord
		r.chain, r.hasChain = digestKey(l.ChainID)
		if !l.StackBound { // otherwise it is right on its own stack alone
			r.diff, r.hasDiff = digestKey(l.DiffID)
			r.blob, r.hasBlob = digestKey(l.Blob)
		}
		r.compressed, r.unpacked = l.CompressedBytes, l.UnpackedBytes
		if r.hasChain || r.hasDiff || r.hasBlob {
			records = append(records, r)
		}
	}
	return records
}

// sameContent may miss that contents are the same, where a candidate names something twice.
func (x *Index) sameContent(r *record, images []CandidateImage, layers []layerRecord) bool {
	return len(r.images) == len(images) && len(r.layers) == len(layers) &&
		!slices.ContainsFunc(r.images, func(n uint32) bool { return !slices.Contains(images, *x.content.images.at(n)) }) &&
		!slices.ContainsFunc(images, func(img CandidateImage) bool {
			return !slices.ContainsFunc(r.images, func(n uint32) bool { return *x.content.images.at(n) == img })
		}) &&
		slices.EqualFunc(r.layers, layers, func(n uint32, l layerRecord) bool { return *x.content.layers.at(n) == l })
}

// describe sets everything of a candidate but its content.
func (x *Index) describe(slot uint32, c *Candidate) {
	r, s := &x.records[slot], &x.states[slot]
	r.name, r.id, r.state, r.unreachable = c.Name, c.ID, c.State, c.Unreachable
	s.created, s.expires = c.Created.UnixMicro(), noExpiry
	if !c.Expires.IsZero() {
		s.expires = c.Expires.UnixMicro()
	}
	s.ready, s.reachable, s.attached = c.State == StateAvailable, c.Unreachable == "", c.Attached
}

func (x *Index) add(c *Candidate, layers []layerRecord) {
	slot := x.newSlot()
	r := &x.records[slot]
	x.describe(slot, c)
	x.byID[c.ID] = slot
	x.byName[c.Name] = append(x.byName[c.Name], slot)
	for i := range c.Images {
		if number, added := x.content.addImage(&c.Images[i], slot); added {
			r.images = append(r.images, number)
		}
		x.states[slot].platforms |= 1 << x.platform(c.Images[i].Platform)
	}
	r.layers = make([]uint32, 0, len(layers))
	for i := range layers {
		if number, added := x.content.addLayer(&layers[i], slot); added {
			r.layers = append(r.layers, number)
		}
	}
	x.states[slot].hasLayers = len(r.layers) > 0
}

func (x *Index) newSlot() uint32 {
	if last := len(x.free) - 1; last >= 0 {
		slot := x.free[last]
		x.free = x.free[:last]
		return slot
	}
	x.records = append(x.records, record{})
	x.states = append(x.states, state{})
	return uint32(len(x.records) - 1)
}

func (x *Index) remove(slot uint32) {
	r := &x.records[slot]
	for _, number := range r.images {
		x.content.removeImage(number, slot)
	}
	for _, number := range r.layers {
		x.content.removeLayer(number, slot)
	}
	delete(x.byID, r.id)
	if named := slices.DeleteFunc(x.byName[r.name], func(s uint32) bool { return s == slot }); len(named) > 0 {
		x.byName[r.name] = named
	} else {
		delete(x.byName, r.name)
	}
	x.records[slot], x.states[slot] = record{}, state{}
	x.free = append(x.free, slot)
}

// platform numbers a platform.
func (x *Index) platform(p Platform) int {
	at := slices.Index(x.platforms, p)
	if at < 0 && len(x.platforms) < manyPlatforms {
		x.platforms = append(x.platforms, p)
		at = len(x.platforms) - 1
	}
	if at < 0 {
		return manyPlatforms
	}
	return at
}
