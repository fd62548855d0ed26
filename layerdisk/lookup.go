package layerdisk

import (
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Lookup finds what an index holds in constant time. It does not change and is safe for concurrent use; what it returns
// is shared with the index and must not be changed either.
type Lookup struct {
	index  *Index
	layers map[digest.Digest]int // by diff ID
	blobs  map[digest.Digest]blobAt
	chains map[digest.Digest]int
	images map[string][]int // by reference
}

type blobAt struct{ layer, blob int }

// NewLookup prepares the look-ups of a valid index, which it keeps.
func NewLookup(ix *Index) *Lookup {
	l := &Lookup{
		index:  ix,
		layers: make(map[digest.Digest]int, len(ix.Layers)),
		blobs:  make(map[digest.Digest]blobAt, len(ix.Layers)),
		chains: make(map[digest.Digest]int, len(ix.Chains)),
		images: make(map[string][]int, len(ix.Images)),
	}
	for i := range ix.Layers {
		if ix.Layers[i].StackBound {
			continue // right on its own stack alone
		}
		l.layers[ix.Layers[i].DiffID] = i
		for j, b := range ix.Layers[i].Blobs {
			l.blobs[b.Digest] = blobAt{i, j}
		}
	}
	for i := range ix.Chains {
		l.chains[ix.Chains[i].ChainID] = i
	}
	for i := range ix.Images {
		l.images[ix.Images[i].Reference] = append(l.images[ix.Images[i].Reference], i)
	}
	return l
}

// Index is the one given to NewLookup.
func (l *Lookup) Index() *Index { return l.index }

// Chain finds a stack of layers by its chain ID and the layer at its top.
func (l *Lookup) Chain(chainID digest.Digest) (Chain, Layer, bool) {
	i, ok := l.chains[chainID]
	if !ok {
		return Chain{}, Layer{}, false
	}
	c := l.index.Chains[i]
	return c, l.index.Layers[c.Layer], true
}

// Stack gives the layers of a chain, the lowest first, nil if the chain is not there.
func (l *Lookup) Stack(chainID digest.Digest) []Layer {
	var stack []Layer
	for chainID != "" {
		c, layer, ok := l.Chain(chainID)
		if !ok {
			return nil
		}
		stack = append(stack, layer)
		chainID = c.Parent
	}
	slices.Reverse(stack)
	return stack
}

// Layer finds a layer by its diff ID, but for those that are bound to their stack.
func (l *Lookup) Layer(diffID digest.Digest) (Layer, bool) {
	i, ok := l.layers[diffID]
	if !ok {
		return Layer{}, false
	}
	return l.index.Layers[i], true
}

// Blob finds a layer by the digest of one of its compressed forms, but for those that are bound to their stack.
func (l *Lookup) Blob(d digest.Digest) (Layer, Blob, bool) {
	at, ok := l.blobs[d]
	if !ok {
		return Layer{}, Blob{}, false
	}
	layer := l.index.Layers[at.layer]
	return layer, layer.Blobs[at.blob], true
}

// Images finds the images of a normalised reference, in the order of the index. A nil matcher takes every platform.
func (l *Lookup) Images(reference string, platform platforms.Matcher) []Image {
	var found []Image
	for _, i := range l.images[reference] {
		if platform == nil || platform.Match(l.index.Images[i].Platform) {
			found = append(found, l.index.Images[i])
		}
	}
	return found
}

// Platforms lists the platforms of a reference, for messages about a missing platform.
func (l *Lookup) Platforms(reference string) []ocispec.Platform {
	var found []ocispec.Platform
	for _, i := range l.images[reference] {
		found = append(found, l.index.Images[i].Platform)
	}
	return found
}
