package matcher_test

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	. "berth.dev/berth/matcher"
)

// oracle reads the rules literally, without an index.
type oracle struct {
	r     Request
	fleet []Candidate // by name
	// blobs are the blobs of the wanted images' layers and blobSizes what they weigh, worked out once.
	blobs     [][]digest.Digest
	blobSizes map[digest.Digest]int64
	sizes     map[item]itemSize
}

func newOracle(r Request, fleet []Candidate) oracle {
	o := oracle{r: r, fleet: fleet, blobSizes: make(map[digest.Digest]int64)}
	o.sizes = o.settled()
	for _, w := range o.wanted() {
		its, layers := items(w)
		var blobs []digest.Digest
		for n := range its {
			blobs = append(blobs, o.blob(its[n], layers[n]))
		}
		o.blobs = append(o.blobs, blobs)
	}
	for _, blobs := range o.blobs {
		for _, blob := range blobs {
			o.blobSizes[blob] = o.size(blob)
		}
	}
	return o
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

// item is a layer of the request: its chain ID, or where that is not known the image and the place in it. What is known
// of an image by name alone is the item -1.
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

// settled are the sizes of the items: the request's, else the largest anybody tells, else worth an attach.
func (o oracle) settled() map[item]itemSize {
	out := o.told()
	for it, s := range out {
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

// told are the sizes that anybody tells.
func (o oracle) told() map[item]itemSize {
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
		out[it] = s
	}
	return out
}

// blob of a layer: the request's, the one that another image of the request has for it, or else something that is the
// same for equal layers.
func (o oracle) blob(it item, l Layer) digest.Digest {
	if l.Blob != "" {
		return l.Blob
	}
	diff := l.DiffID
	for _, w := range o.wanted() {
		its, layers := items(w)
		for n := range its {
			if its[n] == it && layers[n].Blob != "" {
				return layers[n].Blob
			}
			if its[n] == it && diff == "" {
				diff = layers[n].DiffID
			}
		}
	}
	switch {
	case diff != "":
		return diff
	case it.chain != "":
		return it.chain
	}
	return digest.Digest(fmt.Sprint(it))
}

// size of a blob: what the request says of it, else the largest that anybody tells, else worth an attach.
func (o oracle) size(blob digest.Digest) int64 {
	var said, told int64
	sizes := o.told()
	for i, w := range o.wanted() {
		its, layers := items(w)
		for n := range its {
			if o.blobs[i][n] == blob {
				said, told = max(said, layers[n].CompressedBytes), max(told, sizes[its[n]].compressed)
			}
		}
	}
	return cmp.Or(said, told, o.r.Rules.AttachCostBytes+1)
}

// bytes is the key "matched-bytes".
func (o oracle) bytes(c *Candidate) int64 {
	sizes, counted := o.sizes, make(map[item]bool)
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
	case OrderSaved:
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
