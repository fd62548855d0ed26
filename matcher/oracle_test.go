package matcher_test

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"
)

// seed repeats one run of TestOracle: go test -run TestOracle -seed N.
var seed = flag.Uint64("seed", 0, "seed of the random fleets, 0 for a new one")

// TestOracle compares the index with a brute force reading of the rules on thousands of small random fleets: every
// candidate against every request, every set of disks. Fleets change between matches, so that the index is not only built.
func TestOracle(t *testing.T) {
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	rounds := 3000
	if testing.Short() {
		rounds = 1000
	}
	outcomes := make(map[string]int)
	for round := range uint64(rounds) {
		s := first + round
		g := &generator{rand.New(rand.NewPCG(s, 7))}
		x, fleet := NewIndex(), make(map[string]Candidate)
		for range 1 + g.IntN(3) {
			g.change(t, x, fleet)
			r := g.request()
			d, err := x.Match(r)
			require.NoError(t, err, "seed %d", s)
			want := oracle{r, sorted(fleet)}.decide()
			require.Equal(t, want.outcome, d.Outcome, "seed %d: %s: want %v, request %+v", s, d.Reason, want, r)
			require.Equal(t, want.chosen, names(d), "seed %d: %s", s, d.Reason)
			require.Equal(t, want.saved, d.Saved, "seed %d: %v of %+v for %+v", s, want.chosen, sorted(fleet), r)
			require.Equal(t, want.nothing, d.NothingMatched, "seed %d", s)
			require.True(t, d.Proven, "seed %d", s)
			checkExplained(t, d, want, s)
			outcomes[fmt.Sprintf("%v, %d disks", d.Outcome, len(d.Chosen))]++
		}
	}
	t.Logf("first seed %d, outcomes %v", first, outcomes)
	for _, o := range []string{"pull, 0 disks", "use, 1 disks", "use, 2 disks", "use, 3 disks", "reject, 0 disks"} {
		require.NotZero(t, outcomes[o], "the fleets never gave %q", o)
	}
}

// checkExplained: everybody who may be used and shares something is explained, exactly the chosen are called chosen.
func checkExplained(t *testing.T, d Decision, want answer, s uint64) {
	for _, c := range d.Candidates {
		require.Equal(t, slices.Contains(want.chosen, c.Name), c.Verdict == VerdictChosen, "seed %d: %s: %s", s, c.Name, c.Why)
		require.NotEmpty(t, c.Why, "seed %d: %s is %s", s, c.Name, c.Verdict)
		require.Equal(t, want.unusable[c.Name] != "", slices.Contains(
			[]Verdict{VerdictNotReady, VerdictExpired, VerdictPlatform, VerdictUnreachable}, c.Verdict), "seed %d: %s is %s", s, c.Name, c.Verdict)
		if v := want.unusable[c.Name]; v != "" {
			require.Equal(t, v, c.Verdict, "seed %d: %s", s, c.Name)
		}
	}
	for _, name := range want.sharing {
		require.Contains(t, verdicts(d), name, "seed %d", s)
	}
}

func sorted(fleet map[string]Candidate) []Candidate {
	var out []Candidate
	for _, c := range fleet {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Candidate) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// generator makes small worlds in which everything collides: few layers, few names, few sizes.
type generator struct{ *rand.Rand }

func (g *generator) oneIn(n int) bool { return g.IntN(n) == 0 }

func (g *generator) image() Image {
	layers := make([]string, 1+g.IntN(4))
	for i := range layers {
		// The size is the layer's own, as with real layers.
		n := g.IntN(6)
		layers[i] = fmt.Sprintf("%d:%d:%d", n, 1+n*n*10, 2+n*15)
	}
	i := img(fmt.Sprintf("app%d:1", g.IntN(4)), layers...)
	if g.oneIn(8) {
		i.Platform = arm64
	}
	return i
}

func (g *generator) candidate(n int) Candidate {
	var images []Image
	for range 1 + g.IntN(2) {
		images = append(images, g.image())
	}
	c := snap(fmt.Sprintf("s%d", n), g.IntN(3), images...)
	c.Attached = g.oneIn(4)
	switch g.IntN(16) {
	case 0:
		c.State = "Creating"
	case 1:
		c.Expires = noon.Add(-time.Hour)
	case 2:
		c.Unreachable = "far away"
	case 3:
		c.Expires = noon.Add(time.Hour)
	case 4:
		c.Layers = nil
	case 5: // a disk with holes
		c.Layers = slices.DeleteFunc(c.Layers, func(Layer) bool { return g.oneIn(3) })
	case 6:
		c.Layers = slices.Clone(c.Layers)
		for i := range c.Layers {
			c.Layers[i].StackBound = g.oneIn(2)
		}
	case 7:
		for i := range c.Images {
			c.Images[i].ManifestDigest = ""
		}
	case 8:
		c.Images = nil
	}
	return c
}

func (g *generator) change(t *testing.T, x *Index, fleet map[string]Candidate) {
	for range 3 + g.IntN(12) {
		c := g.candidate(g.IntN(9))
		switch g.IntN(5) {
		case 0:
			_, there := fleet[c.ID]
			require.Equal(t, there, x.Remove(c.ID))
			delete(fleet, c.ID)
		case 1:
			old, there := fleet[c.ID]
			require.Equal(t, there, x.SetAttached(c.ID, c.Attached))
			if there {
				old.Attached = c.Attached
				fleet[c.ID] = old
			}
		default:
			require.NoError(t, x.Put(c))
			fleet[c.ID] = c
		}
	}
	require.Equal(t, len(fleet), x.Len())
}

func (g *generator) request() Request {
	r := Request{Now: noon, Explain: 100}
	for range 1 + g.IntN(5) {
		i := g.image()
		switch g.IntN(8) {
		case 0:
			i = named(i)
		case 1:
			i.ManifestDigest = ""
		case 2:
			i.Layers[0].Present = true
		case 3:
			i.Layers[g.IntN(len(i.Layers))].Present = true
		case 4:
			i = only(i, []string{"chain", "diff", "blob"}[g.IntN(3)])
		}
		r.Images = append(r.Images, i)
	}
	r.Rules = Rules{AutoMatch: !g.oneIn(8), Order: Order(g.IntN(4)), MaxAttach: g.IntN(5), AttachCostBytes: []int64{0, 0, 0, 10, 30, 200}[g.IntN(6)]}
	if g.oneIn(2) {
		r.Rules.Order = OrderSaved
	}
	r.Rules.PerfectMatch, r.Rules.MatchCount = g.oneIn(16), max(0, g.IntN(24)-20)
	if g.oneIn(4) {
		n := g.IntN(9)
		r.Rules.Pin = []Pin{{Name: fmt.Sprintf("s%d", n)}, {ID: fmt.Sprintf("id-s%d", n)}, {Name: fmt.Sprintf("id-s%d", n), NameOrID: true}}[g.IntN(3)]
		r.Rules.Conflict, r.Rules.RejectIfUnavailable, r.Rules.PinNeedsMatch = ConflictPolicy(g.IntN(4)), g.oneIn(2), g.oneIn(4)
	}
	return r
}

// oracle reads the rules literally, without an index.
type oracle struct {
	r     Request
	fleet []Candidate // by name
}

type answer struct {
	outcome  Outcome
	chosen   []string
	saved    Saving
	nothing  bool
	unusable map[string]Verdict
	sharing  []string
}

func (o oracle) decide() answer {
	a := answer{outcome: OutcomePull, chosen: []string{}}
	rules := o.r.Rules
	pinned := !rules.Pin.IsZero()
	if !pinned && !rules.AutoMatch {
		return a
	}
	if pinned && rules.AutoMatch && rules.Conflict == ConflictRejectBoth {
		a.outcome = OutcomeReject
		return a
	}
	a.unusable = make(map[string]Verdict)
	for i := range o.fleet {
		c := &o.fleet[i]
		a.unusable[c.Name] = o.unusable(c)
		if len(o.has(c)) > 0 || o.exact(c) > 0 {
			a.sharing = append(a.sharing, c.Name)
		}
	}
	auto := func() answer { return o.auto(a) }
	if !pinned {
		return auto()
	}
	var pin *Candidate
	for i := range o.fleet {
		c := &o.fleet[i]
		if c.Name == rules.Pin.Name || c.ID == rules.Pin.ID || rules.Pin.NameOrID && c.ID == rules.Pin.Name {
			pin = c
		}
	}
	switch {
	case pin == nil || a.unusable[pin.Name] != "":
		if rules.RejectIfUnavailable {
			a.outcome = OutcomeReject
		}
		return a
	case rules.PinNeedsMatch && o.exact(pin) == 0:
		return a
	case rules.AutoMatch && rules.Conflict == ConflictRejectIfDifferent:
		if other := auto(); len(other.chosen) > 0 && !slices.Contains(other.chosen, pin.Name) {
			a.outcome = OutcomeReject
			return a
		}
	}
	a.outcome, a.chosen, a.saved = OutcomeUse, []string{pin.Name}, o.saving([]*Candidate{pin})
	return a
}

func (o oracle) unusable(c *Candidate) Verdict {
	fits := len(c.Images) == 0
	for _, i := range c.Images {
		for _, w := range o.r.Images {
			fits = fits || i.Platform == w.Platform
		}
	}
	switch {
	case c.State != StateAvailable:
		return VerdictNotReady
	case !c.Expires.IsZero() && !c.Expires.After(o.r.Now):
		return VerdictExpired
	case !fits:
		return VerdictPlatform
	case c.Unreachable != "":
		return VerdictUnreachable
	}
	return ""
}

// wanted are the distinct images of the request.
func (o oracle) wanted() []Image {
	var out []Image
	for _, w := range o.r.Images {
		if !slices.ContainsFunc(out, func(i Image) bool {
			return i.Reference == w.Reference && i.ManifestDigest == w.ManifestDigest && i.Platform == w.Platform
		}) {
			out = append(out, w)
		}
	}
	return out
}

func exactly(w Image, c *Candidate) bool {
	return slices.ContainsFunc(c.Images, func(i CandidateImage) bool {
		if i.Platform != w.Platform {
			return false
		}
		if i.ManifestDigest != "" && w.ManifestDigest != "" {
			return i.ManifestDigest == w.ManifestDigest
		}
		return i.Reference == w.Reference
	})
}

func (o oracle) exact(c *Candidate) int {
	n := 0
	for _, w := range o.wanted() {
		if exactly(w, c) {
			n++
		}
	}
	return n
}

// item is a layer of the request: its chain ID, or where that is not known the image and the place in it. What is known of
// an image by name alone is the item -1.
type item struct {
	chain digest.Digest
	image string
	place int
}

type itemSize struct{ compressed, unpacked int64 }

// items of a wanted image from the bottom, with chain IDs worked out.
func items(w Image) ([]item, []Layer) {
	name := w.Reference + string(w.ManifestDigest) + w.Platform.String()
	if w.Layers == nil {
		return []item{{"", name, -1}}, []Layer{{}}
	}
	var out []item
	layers := slices.Clone(w.Layers)
	parent := digest.Digest("")
	for n := range layers {
		if layers[n].ChainID == "" && layers[n].DiffID != "" {
			layers[n].ChainID = layers[n].DiffID
			if n > 0 {
				layers[n].ChainID = digest.FromString(string(parent) + " " + string(layers[n].DiffID))
			}
		}
		parent = layers[n].ChainID
		if parent != "" {
			out = append(out, item{chain: parent})
		} else {
			out = append(out, item{"", name, n})
		}
	}
	return out, layers
}

// has gives the items that a candidate has.
func (o oracle) has(c *Candidate) map[item]bool {
	out := make(map[item]bool)
	for _, w := range o.wanted() {
		its, layers := items(w)
		for n, it := range its {
			assumed := exactly(w, c) && (w.Layers == nil || len(c.Layers) == 0)
			if assumed || slices.ContainsFunc(c.Layers, func(l Layer) bool { return serves(l, layers[n]) }) {
				out[it] = true
			}
		}
	}
	return out
}

func serves(l, want Layer) bool {
	same := func(a, b digest.Digest) bool { return a != "" && a == b }
	return same(l.ChainID, want.ChainID) || !l.StackBound && (same(l.DiffID, want.DiffID) || same(l.Blob, want.Blob))
}

func (o oracle) present() map[item]bool {
	out := make(map[item]bool)
	for _, w := range o.wanted() {
		its, layers := items(w)
		for n, it := range its {
			if layers[n].Present {
				out[it] = true
			}
		}
	}
	return out
}

// sizes of the items: the request's, else the largest anybody tells, else worth an attach.
func (o oracle) sizes() map[item]itemSize {
	out := make(map[item]itemSize)
	for _, w := range o.wanted() {
		its, layers := items(w)
		for n, it := range its {
			s := out[it]
			s.compressed, s.unpacked = max(s.compressed, layers[n].CompressedBytes), max(s.unpacked, layers[n].UnpackedBytes)
			out[it] = s
		}
	}
	for it, s := range out {
		if s.compressed == 0 {
			for i := range o.fleet {
				for _, w := range o.wanted() {
					its, _ := items(w)
					for _, ci := range o.fleet[i].Images {
						one := Candidate{Images: []CandidateImage{ci}}
						if w.Layers == nil && its[0] == it && exactly(w, &one) {
							s.compressed = max(s.compressed, ci.SizeBytes)
						}
					}
				}
			}
		}
		if s.compressed == 0 {
			s.compressed = o.r.Rules.AttachCostBytes + 1
		}
		if s.unpacked == 0 {
			s.unpacked = s.compressed
		}
		out[it] = s
	}
	return out
}

func (o oracle) saving(disks []*Candidate) Saving {
	has, present, sizes := make(map[item]bool), o.present(), o.sizes()
	for _, c := range disks {
		for it := range o.has(c) {
			has[it] = true
		}
	}
	run := make(map[item]bool)
	for _, w := range o.wanted() {
		its, _ := items(w)
		for _, it := range its {
			if !has[it] && !present[it] {
				break
			}
			run[it] = true
		}
	}
	var s Saving
	for it := range sizes {
		switch {
		case present[it]:
		case run[it]:
			s.DownloadBytes += sizes[it].compressed
		case has[it]:
			s.UnpackBytes += sizes[it].unpacked
		}
	}
	return s
}

// bytes is the key "matched-bytes".
func (o oracle) bytes(c *Candidate) int64 {
	sizes, counted := o.sizes(), make(map[item]bool)
	var sum int64
	for _, w := range o.wanted() {
		if !exactly(w, c) {
			continue
		}
		its, _ := items(w)
		for _, it := range its {
			counted[it] = true
			if w.Layers != nil {
				sum += sizes[it].compressed
			}
		}
		if w.Layers == nil {
			var largest int64
			for _, ci := range c.Images {
				if exactly(w, &Candidate{Images: []CandidateImage{ci}}) {
					largest = max(largest, ci.SizeBytes)
				}
			}
			sum += largest
		}
	}
	for it := range o.has(c) {
		if !counted[it] {
			sum += sizes[it].compressed
		}
	}
	return sum
}

// keys of a candidate in the order of the rules, the name last and lowest first.
func (o oracle) keys(c *Candidate) []int64 {
	exact, created := int64(o.exact(c)), c.Created.UnixNano()
	switch o.r.Rules.Order {
	case OrderSize:
		return []int64{o.bytes(c), created}
	case OrderQuantity:
		return []int64{exact, created}
	case OrderDegree:
		return []int64{exact, o.bytes(c), created}
	}
	s, att := o.saving([]*Candidate{c}), int64(0)
	if c.Attached {
		att = 1
	} else {
		s.DownloadBytes -= o.r.Rules.AttachCostBytes
	}
	return []int64{s.DownloadBytes, s.UnpackBytes, att, exact, created}
}

func (o oracle) auto(a answer) answer {
	rules := o.r.Rules
	var usable []*Candidate
	a.nothing = true
	for i := range o.fleet {
		c := &o.fleet[i]
		containers := 0
		for _, w := range o.r.Images {
			if exactly(w, c) {
				containers++
			}
		}
		switch {
		case a.unusable[c.Name] != "", len(o.has(c)) == 0 && o.exact(c) == 0:
		case rules.PerfectMatch && containers < len(o.r.Images):
		case !rules.PerfectMatch && containers < rules.MatchCount:
		default:
			usable = append(usable, c)
			a.nothing = a.nothing && containers == 0
		}
	}
	if !rules.Pin.IsZero() {
		a.nothing = false
	}
	if len(usable) == 0 {
		return a
	}
	slices.SortStableFunc(usable, func(x, y *Candidate) int { return -slices.Compare(o.keys(x), o.keys(y)) }) // ties keep the order of names
	chosen := usable[:1]
	if rules.Order == OrderSaved {
		chosen = o.bestSet(usable)
	}
	for _, c := range chosen {
		a.chosen = append(a.chosen, c.Name)
	}
	if len(chosen) > 0 {
		a.outcome, a.saved = OutcomeUse, o.saving(chosen)
	}
	return a
}

// bestSet tries all sets of candidates that are not attached; usable is by rank.
func (o oracle) bestSet(usable []*Candidate) []*Candidate {
	var attached []*Candidate
	var others []int
	for n, c := range usable {
		if c.Attached {
			attached = append(attached, c)
		} else {
			others = append(others, n)
		}
	}
	limit := o.r.Rules.MaxAttach
	if limit == 0 {
		limit = DefaultMaxAttach
	}
	var best []int
	var bestKeys []int64
	for mask := range 1 << len(others) {
		var set []int
		disks := slices.Clone(attached)
		for b, n := range others {
			if mask&(1<<b) != 0 {
				set = append(set, n)
				disks = append(disks, usable[n])
			}
		}
		if len(set) > limit {
			continue
		}
		s := o.saving(disks)
		keys := []int64{s.DownloadBytes - int64(len(set))*o.r.Rules.AttachCostBytes, s.UnpackBytes, -int64(len(set))}
		for _, n := range set {
			keys = append(keys, -int64(n)) // better ranks are lower
		}
		if bestKeys == nil || slices.Compare(keys, bestKeys) > 0 {
			best, bestKeys = set, keys
		}
	}
	covered := o.present()
	var chosen []*Candidate
	add := func(c *Candidate, always bool) {
		adds := always
		for it := range o.has(c) {
			adds = adds || !covered[it]
		}
		if adds {
			chosen = append(chosen, c)
			for it := range o.has(c) {
				covered[it] = true
			}
		}
	}
	for _, n := range best {
		add(usable[n], true)
	}
	for _, c := range attached {
		add(c, false)
	}
	slices.SortFunc(chosen, func(x, y *Candidate) int { return slices.Index(usable, x) - slices.Index(usable, y) })
	return chosen
}
