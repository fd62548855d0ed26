package matcher

import (
	"fmt"
	"hash/maphash"
	"slices"
)

// touched is a candidate that shares something with the request or is pinned.
type touched struct {
	slot    uint32
	sets    uint32  // where its sets are, see gathered.has and gathered.exact
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

// gathered is what the index has for one request: the candidates that share something with it. Everything in it lives
// for one call under the index's read lock.
type gathered struct {
	*scratch
	index *Index
	plan  *plan
	now   int64 // microseconds since 1970
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
	bytes      int64 // see ordering.bytesOf
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

// touch returns the place of a candidate among the touched ones. Places stay, pointers to them do not.
func (g *gathered) touch(slot uint32) int {
	if at := g.at[slot]; at != 0 {
		return int(at - 1)
	}
	g.touched = append(g.touched, touched{slot: slot, lastImage: -1, verdict: g.unusable(slot)})
	at := len(g.touched)
	g.at[slot] = uint32(at)
	g.touched[at-1].sets = uint32(len(g.words))
	for range bitsetWords(len(g.plan.items)) + bitsetWords(len(g.plan.images)) {
		g.words = append(g.words, 0)
	}
	return at - 1
}

// has is the set of items that a candidate has. It is valid until another one is touched.
func (g *gathered) has(t *touched) bitset {
	return bitset(g.words[t.sets : int(t.sets)+bitsetWords(len(g.plan.items))])
}

// exact is the set of images that match exactly, valid likewise.
func (g *gathered) exact(t *touched) bitset {
	from := int(t.sets) + bitsetWords(len(g.plan.items))
	return bitset(g.words[from : from+bitsetWords(len(g.plan.images))])
}

// unusable says what keeps a candidate from being used by anybody, whatever it holds.
func (g *gathered) unusable(slot uint32) Verdict {
	s := &g.index.states[slot]
	switch {
	case !s.ready:
		return VerdictNotReady
	case g.now >= s.expires:
		return VerdictExpired
	case s.platforms != 0 && s.platforms&g.platforms == 0: // 0: only the layers are known
		return VerdictPlatform
	case !s.reachable:
		return VerdictUnreachable
	}
	return ""
}

// wanted returns the bits of the platforms that fit an image of the request.
func (g *gathered) wanted() uint64 {
	fit := uint64(1) << manyPlatforms
	for i, p := range g.index.platforms {
		if slices.ContainsFunc(g.plan.images, func(img planImage) bool { return img.platform.fits(p) }) {
			fit |= 1 << i
		}
	}
	return fit
}

// gather finds everybody who shares an image or a layer with the request. It looks at nobody else, so that the cost
// does not grow with the rest of the fleet.
func (g *gathered) gather() {
	for i := range g.plan.images {
		g.gatherImage(i)
	}
	for i := range g.plan.items {
		g.gatherItem(i)
	}
	g.plan.settle()
}

// judge finishes what gather began: who may be used, and the score of everybody. What a set of items saves is worked
// out once per distinct set, because thousands of candidates may share just the base layers.
func (o *ordering) judge() {
	seed, last := maphash.MakeSeed(), -1
	for i := range o.g.touched {
		t := &o.g.touched[i]
		has, exact := o.g.has(t), o.g.exact(t)
		o.assumeLayers(t, has, exact)
		o.gate(t, has, exact)
		if t.verdict == "" {
			o.g.usable = append(o.g.usable, i)
		}
		if last < 0 || !o.g.groups[last].of(has, exact) {
			last = o.groupFor(seed, has, exact)
		}
		t.group = last
		o.rate(t)
	}
}

func (g *gathered) gatherImage(i int) {
	img, x := &g.plan.images[i], g.index
	g.seen = g.seen[:0]
	look := func(in *keyed, k key) {
		var one [1]uint32
		for _, number := range in.find(k, &one) {
			if !slices.Contains(g.seen, number) {
				g.seen = append(g.seen, number)
				g.tryImage(i, number)
			}
		}
	}
	if k, ok := digestKey(img.manifest); ok {
		look(&x.content.byManifest, k)
	}
	if k, ok := digestKey(img.pinned); ok {
		look(&x.content.byManifest, k)
		look(&x.content.byIdx, k)
	}
	if img.reference != "" {
		look(&x.content.byRef, stringKey(img.reference))
	}
}

// tryImage holds an image of candidates against one of the request.
func (g *gathered) tryImage(i int, number uint32) {
	img, c := &g.plan.images[i], g.index.content.images.at(number)
	exact := img.exactBy(c).Exact()
	if exact && !img.known {
		g.plan.items[img.items[0]].learn(c.SizeBytes, 0)
	}
	var one [1]uint32
	for _, slot := range g.index.content.images.slots(number, &one) {
		at := g.touch(slot)
		t := &g.touched[at]
		if exact { // otherwise a moved tag or another platform: touched, so that the explanation can say so
			g.exactImage(i, t, c.SizeBytes)
		}
	}
}

func (g *gathered) exactImage(i int, t *touched, sizeBytes int64) {
	img := &g.plan.images[i]
	if exact := g.exact(t); !exact.has(i) {
		exact.set(i)
		t.exactings += img.count
	}
	if img.known {
		return
	}
	g.has(t).set(img.items[0])
	if t.lastImage != i {
		t.lastImage, t.lastBytes = i, 0
	}
	if sizeBytes > t.lastBytes {
		t.imageBytes += sizeBytes - t.lastBytes
		t.lastBytes = sizeBytes
	}
}

func (g *gathered) gatherItem(i int) {
	it, x := &g.plan.items[i], g.index
	look := func(in *keyed, k key, known bool) {
		if !known {
			return
		}
		var one, other [1]uint32
		for _, number := range in.find(k, &one) {
			l := x.content.layers.at(number)
			it.learn(l.compressed, l.unpacked)
			for _, slot := range x.content.layers.slots(number, &other) {
				at := g.touch(slot)
				g.has(&g.touched[at]).set(i)
			}
		}
	}
	look(&x.content.byDiff, it.diff, it.hasDiff)
	look(&x.content.byChain, it.chain, it.hasChain && !it.hasDiff)
	look(&x.content.byBlob, it.blob, it.hasBlob && !it.hasDiff)
	look(&x.content.looseChain, it.chain, it.hasChain)
	look(&x.content.looseBlob, it.blob, it.hasBlob)
}

// assumeLayers gives a candidate of which only the images are known all layers of those it has exactly.
func (o *ordering) assumeLayers(t *touched, has, exact bitset) {
	if o.g.index.states[t.slot].hasLayers {
		return
	}
	exact.each(func(i int) {
		for _, item := range o.g.plan.images[i].items {
			has.set(item)
		}
	})
}

// gate keeps candidates from automatic matching that share nothing or too little.
func (o *ordering) gate(t *touched, has, exact bitset) {
	rules := o.g.plan.rules
	switch {
	case t.verdict != "":
	case has.empty() && exact.empty():
		t.verdict = VerdictNoMatch
	case !rules.AutoMatch:
		t.verdict = VerdictSetAside
	case rules.PerfectMatch:
		if exact.count() < len(o.g.plan.images) {
			t.verdict = VerdictGate
		}
	case t.exactings < rules.MatchCount:
		t.verdict = VerdictGate
	}
}

// gateText says what the gate wanted.
func (e *explainer) gateText(t *touched) string {
	if e.g.plan.rules.PerfectMatch {
		return fmt.Sprintf("it matches %d of %d images exactly and a perfect match is asked for", e.g.exact(t).count(), len(e.g.plan.images))
	}
	return fmt.Sprintf("it matches %d images exactly and %d are asked for", t.exactings, e.g.plan.rules.MatchCount)
}
