package matcher

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// plan is a request prepared for counting: every distinct layer is one numbered item, so that what a candidate has is a
// set of small numbers.
type plan struct {
	rules   *Rules
	images  []planImage // each distinct one once, in the order of the request
	entries int         // images of the request, repeated ones included
	items   []planItem
	present bitset // items on the node
	pulls   pulls
}

// planImage is one distinct image.
type planImage struct {
	reference string
	pinned    digest.Digest // the digest in the reference
	manifest  digest.Digest
	platform  Platform
	count     int  // how often it stands in the request
	known     bool // whether its layers are known
	// items are the layers from the lowest up. If the layers are not known one item stands for all of them.
	items []int
	// blobs are what the request knows of each item in this image.
	blobs []planBlob
}

// planBlob is the compressed form of a layer in one image. The same layer may have others in others.
type planBlob struct {
	by    key
	known bool
	bytes int64 // 0 if not known
}

// planItem is one distinct layer, or all layers of an image whose layers are not known.
type planItem struct {
	chain, diff, blob          key
	hasChain, hasDiff, hasBlob bool
	// The sizes are those of the request where it knows them, otherwise the largest that a candidate tells, so that a
	// layer counts the same whoever has it.
	compressed, unpacked             int64
	compressedByUser, unpackedByUser bool
}

type imageKey struct {
	reference string
	manifest  digest.Digest
	platform  Platform
}

func newPlan(r *Request) *plan {
	p := &plan{rules: &r.Rules, entries: len(r.Images)}
	seen := make(map[imageKey]int, len(r.Images))
	stacks := make(map[key]int)
	var onNode []int
	for i := range r.Images {
		img := &r.Images[i]
		k := imageKey{img.Reference, img.ManifestDigest, img.Platform}
		if at, ok := seen[k]; ok {
			p.images[at].count++
			continue
		}
		seen[k] = len(p.images)
		pi := planImage{
			reference: img.Reference, manifest: img.ManifestDigest, platform: img.Platform, count: 1, known: img.Layers != nil,
		}
		if _, d, ok := strings.Cut(img.Reference, "@"); ok {
			pi.pinned = digest.Digest(d)
		}
		if !pi.known {
			pi.items, pi.blobs = []int{len(p.items)}, make([]planBlob, 1)
			p.items = append(p.items, planItem{})
		}
		var chain digest.Digest
		for j := range img.Layers {
			l := img.Layers[j]
			if l.ChainID == "" && l.DiffID != "" && (j == 0 || chain != "") {
				l.ChainID = chainID(chain, l.DiffID)
			}
			chain = l.ChainID
			item, blob := p.item(stacks, &l)
			pi.items, pi.blobs = append(pi.items, item), append(pi.blobs, blob)
			if l.Present {
				onNode = append(onNode, item)
			}
		}
		p.images = append(p.images, pi)
	}
	p.present = newBitset(len(p.items))
	for _, i := range onNode {
		p.present.set(i)
	}
	p.orderPulls()
	return p
}

// chainID returns the chain ID of a layer on top of a stack, as the image configuration of OCI defines it ("Layer
// ChainID").
func chainID(parent, diffID digest.Digest) digest.Digest {
	if parent == "" {
		return diffID
	}
	return digest.FromString(string(parent) + " " + string(diffID))
}

// item numbers a layer. Images that start with the same stack share its items: they are downloaded and unpacked once.
func (p *plan) item(stacks map[key]int, l *Layer) (int, planBlob) {
	var it planItem
	it.chain, it.hasChain = digestKey(l.ChainID)
	it.diff, it.hasDiff = digestKey(l.DiffID)
	it.blob, it.hasBlob = digestKey(l.Blob)
	number, known := 0, false
	if it.hasChain {
		number, known = stacks[it.chain]
	}
	if !known {
		number = len(p.items)
		p.items = append(p.items, it)
		if it.hasChain {
			stacks[it.chain] = number
		}
	}
	to := &p.items[number]
	if !to.hasDiff { // one image may know more of a shared layer than the other
		to.diff, to.hasDiff = it.diff, it.hasDiff
	}
	if !to.hasBlob {
		to.blob, to.hasBlob = it.blob, it.hasBlob
	}
	if l.CompressedBytes > 0 {
		to.compressed, to.compressedByUser = max(to.compressed, l.CompressedBytes), true
	}
	if l.UnpackedBytes > 0 {
		to.unpacked, to.unpackedByUser = max(to.unpacked, l.UnpackedBytes), true
	}
	return number, planBlob{by: it.blob, known: it.hasBlob, bytes: l.CompressedBytes}
}

// learn takes sizes from a candidate for what the request does not know.
func (it *planItem) learn(compressed, unpacked int64) {
	if !it.compressedByUser {
		it.compressed = max(it.compressed, compressed)
	}
	if !it.unpackedByUser {
		it.unpacked = max(it.unpacked, unpacked)
	}
}

// settle fills in what nobody knows: a layer of unknown size is taken to be worth attaching a disk for, and to be no
// smaller unpacked than it is compressed.
func (p *plan) settle() {
	p.settleBlobs()
	for i := range p.items {
		it := &p.items[i]
		if it.compressed == 0 {
			it.compressed = p.rules.AttachCostBytes + 1
		}
		if it.unpacked == 0 {
			it.unpacked = it.compressed
		}
	}
}

// exactBy reports whether a candidate's image is the whole of this one. Digests decide where both sides know them: a
// tag whose digest has moved is another image.
func (img *planImage) exactBy(c *CandidateImage) MatchedBy {
	if !img.platform.fits(c.Platform) {
		return MatchedByNone
	}
	if img.manifest != "" && c.ManifestDigest != "" {
		if img.manifest == c.ManifestDigest {
			return MatchedByDigest
		}
		return MatchedByNone
	}
	if img.pinned != "" && (img.pinned == c.ManifestDigest || img.pinned == c.IndexDigest) {
		return MatchedByDigest
	}
	if img.reference != "" && img.reference == c.Reference {
		return MatchedByName
	}
	return MatchedByNone
}
