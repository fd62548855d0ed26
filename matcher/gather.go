package matcher

import (
	"fmt"
	"hash/maphash"
	"slices"
)

// touched is a candidate that shares something with the request or is pinned.
type touched struct {
	slot    uint32
	sets    uint32  // where its sets are, see match.has and match.exact
	verdict Verdict // empty while nothing speaks against it
	pinned  bool
	// imageBytes are the sizes of those images in exact whose layers the request does not know. lastImage and lastBytes
	// keep an image that the candidate has twice from counting twice.
	imageBytes, lastBytes int64
	lastImage             int
	exactings             int // images of the request in exact, repeated ones included

	group int // candidates with the same sets
	score score
}

// match is the work on one request. Everything in it lives for one call under the index's read lock.
type match struct {
	*scratch
	index *Index
	plan  *plan
	keys  []KeyName // of the order
	now   int64     // microseconds since 1970
	run   bitset    // scratch of plan.saving
	// platforms are the bits of those that are wanted, see state.platforms.
	platforms uint64
}

// scratch is memory that one match leaves to the next.
type scratch struct {
	at      []uint32 // by slot: 1 + the place in touched, 0 if not touched
	touched []touched
	words   []uint64 // sets of the touched
	usable  []int    // places in touched
	groups  []group
	groupOf map[uint64][]int // by hash of the sets
	seen    []uint32         // numbers of images
}

// group is what all candidates with the same items and the same exact images have in common.
type group struct {
	has, exact bitset
	saved      Saving
	bytes      int64 // see match.bytesOf
}

func (x *Index) scratch() *scratch {
	s, ok := x.scratches.Get().(*scratch)
	if !ok {
		s = &scratch{groupOf: make(map[uint64][]int)}
	}
	if missing := len(x.records) - len(s.at); missing > 0 {
		s.at = append(s.at, make([]uint32, missing)...)
	}
	return s
}

func (x *Index) putScratch(s *scratch) {
	for i := range s.touched {
		s.at[s.touched[i].slot] = 0
	}
	s.touched, s.words, s.groups, s.usable = s.touched[:0], s.words[:0], s.groups[:0], s.usable[:0]
	clear(s.groupOf)
	x.scratches.Put(s)
}

// touch gives the place of a candidate among the touched ones. Places stay, pointers to them do not.
func (m *match) touch(slot uint32) int {
	if at := m.at[slot]; at != 0 {
		return int(at - 1)
	}
	m.touched = append(m.touched, touched{slot: slot, lastImage: -1, verdict: m.unusable(slot)})
	at := len(m.touched)
	m.at[slot] = uint32(at)
	m.touched[at-1].sets = uint32(len(m.words))
	for range bitsetWords(len(m.plan.items)) + bitsetWords(len(m.plan.images)) {
		m.words = append(m.words, 0)
	}
	return at - 1
}

// has is the set of items that a candidate has. It is valid until another one is touched.
func (m *match) has(t *touched) bitset {
	return bitset(m.words[t.sets : int(t.sets)+bitsetWords(len(m.plan.items))])
}

// exact is the set of images that match exactly, valid likewise.
func (m *match) exact(t *touched) bitset {
	from := int(t.sets) + bitsetWords(len(m.plan.items))
	return bitset(m.words[from : from+bitsetWords(len(m.plan.images))])
}

// unusable says what keeps a candidate from being used by anybody, whatever it holds.
func (m *match) unusable(slot uint32) Verdict {
	s := &m.index.states[slot]
	switch {
	case !s.ready:
		return VerdictNotReady
	case m.now >= s.expires:
		return VerdictExpired
	case s.platforms != 0 && s.platforms&m.platforms == 0: // of none nothing is known but layers
		return VerdictPlatform
	case !s.reachable:
		return VerdictUnreachable
	}
	return ""
}

// wanted gives the bits of the platforms that fit an image of the request.
func (m *match) wanted() uint64 {
	fit := uint64(1) << manyPlatforms
	for i, p := range m.index.platforms {
		if slices.ContainsFunc(m.plan.images, func(img planImage) bool { return img.platform.fits(p) }) {
			fit |= 1 << i
		}
	}
	return fit
}

// gather finds everybody who shares an image or a layer with the request. It looks at nobody else, so that the cost
// does not grow with the rest of the fleet.
func (m *match) gather() {
	for i := range m.plan.images {
		m.gatherImage(i)
	}
	for i := range m.plan.items {
		m.gatherItem(i)
	}
	m.plan.settle()
}

// judge finishes what gather began: who may be used, and the score of everybody. What a set of items saves is worked
// out once per distinct set, because thousands of candidates may share just the base layers.
func (m *match) judge() {
	seed, last := maphash.MakeSeed(), -1
	for i := range m.touched {
		t := &m.touched[i]
		has, exact := m.has(t), m.exact(t)
		m.assumeLayers(t, has, exact)
		m.gate(t, has, exact)
		if t.verdict == "" {
			m.usable = append(m.usable, i)
		}
		if last < 0 || !m.groups[last].of(has, exact) {
			last = m.groupFor(seed, has, exact)
		}
		t.group = last
		m.rate(t)
	}
}

func (m *match) gatherImage(i int) {
	img, x := &m.plan.images[i], m.index
	m.seen = m.seen[:0]
	look := func(in *keyed, k key) {
		var one [1]uint32
		for _, number := range in.find(k, &one) {
			if !slices.Contains(m.seen, number) {
				m.seen = append(m.seen, number)
				m.tryImage(i, number)
			}
		}
	}
	if k, ok := digestKey(img.manifest); ok {
		look(&x.byManifest, k)
	}
	if k, ok := digestKey(img.pinned); ok {
		look(&x.byManifest, k)
		look(&x.byIdx, k)
	}
	if img.reference != "" {
		look(&x.byRef, stringKey(img.reference))
	}
}

// tryImage holds an image of candidates against one of the request.
func (m *match) tryImage(i int, number uint32) {
	img, c := &m.plan.images[i], m.index.images.at(number)
	exact := img.exactBy(c).Exact()
	if exact && !img.known {
		m.plan.items[img.items[0]].learn(c.SizeBytes, 0)
	}
	var one [1]uint32
	for _, slot := range m.index.images.slots(number, &one) {
		at := m.touch(slot)
		t := &m.touched[at]
		if exact { // otherwise a moved tag or another platform: touched, so that the explanation can say so
			m.exactImage(i, t, c.SizeBytes)
		}
	}
}

func (m *match) exactImage(i int, t *touched, sizeBytes int64) {
	img := &m.plan.images[i]
	if exact := m.exact(t); !exact.has(i) {
		exact.set(i)
		t.exactings += img.count
	}
	if img.known {
		return
	}
	m.has(t).set(img.items[0])
	if t.lastImage != i {
		t.lastImage, t.lastBytes = i, 0
	}
	if sizeBytes > t.lastBytes {
		t.imageBytes += sizeBytes - t.lastBytes
		t.lastBytes = sizeBytes
	}
}

func (m *match) gatherItem(i int) {
	it, x := &m.plan.items[i], m.index
	look := func(in *keyed, k key, known bool) {
		if !known {
			return
		}
		var one, other [1]uint32
		for _, number := range in.find(k, &one) {
			l := x.layers.at(number)
			it.learn(l.compressed, l.unpacked)
			for _, slot := range x.layers.slots(number, &other) {
				at := m.touch(slot)
				m.has(&m.touched[at]).set(i)
			}
		}
	}
	look(&x.byDiff, it.diff, it.hasDiff)
	look(&x.byChain, it.chain, it.hasChain && !it.hasDiff)
	look(&x.byBlob, it.blob, it.hasBlob && !it.hasDiff)
	look(&x.looseChain, it.chain, it.hasChain)
	look(&x.looseBlob, it.blob, it.hasBlob)
}

// assumeLayers gives a candidate of which only the images are known all layers of those it has exactly.
func (m *match) assumeLayers(t *touched, has, exact bitset) {
	if m.index.states[t.slot].hasLayers {
		return
	}
	exact.each(func(i int) {
		for _, item := range m.plan.images[i].items {
			has.set(item)
		}
	})
}

// gate keeps candidates from automatic matching that share nothing or too little.
func (m *match) gate(t *touched, has, exact bitset) {
	rules := m.plan.rules
	switch {
	case t.verdict != "":
	case has.empty() && exact.empty():
		t.verdict = VerdictNoMatch
	case !rules.AutoMatch:
		t.verdict = VerdictSetAside
	case rules.PerfectMatch:
		if exact.count() < len(m.plan.images) {
			t.verdict = VerdictGate
		}
	case t.exactings < rules.MatchCount:
		t.verdict = VerdictGate
	}
}

// gateText says what the gate wanted.
func (m *match) gateText(t *touched) string {
	if m.plan.rules.PerfectMatch {
		return fmt.Sprintf("it matches %d of %d images exactly and a perfect match is asked for", m.exact(t).count(), len(m.plan.images))
	}
	return fmt.Sprintf("it matches %d images exactly and %d are asked for", t.exactings, m.plan.rules.MatchCount)
}
