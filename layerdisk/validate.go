package layerdisk

import (
	_ "crypto/sha256" // digests of the format
	_ "crypto/sha512" // digests of the format
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// Validate checks every rule that an index keeps to by itself. Its errors are errdefs.ErrInvalidArgument.
func (ix *Index) Validate() error {
	if err := ix.check(); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (ix *Index) check() error {
	major, err := majorVersion(ix.FormatVersion)
	if err != nil {
		return err
	}
	if major != MajorVersion {
		return fmt.Errorf("format version %s is not %d.x", ix.FormatVersion, MajorVersion)
	}
	if err := checkUUID(ix.UUID); err != nil {
		return err
	}
	if err := checkFileSystem(ix.FileSystem); err != nil {
		return err
	}
	if y := ix.Created.UTC().Year(); y < 0 || y > 9999 {
		return fmt.Errorf("created in the year %d, which RFC 3339 cannot say", y)
	}
	if err := checkCounts(ix); err != nil {
		return err
	}
	if err := checkPlaced(ix.Placed); err != nil {
		return err
	}
	if err := checkLayers(ix.Layers); err != nil {
		return err
	}
	chains, err := checkChains(ix.Chains, ix.Layers)
	if err != nil {
		return err
	}
	return checkImages(ix, chains)
}

func checkCounts(ix *Index) error {
	for _, c := range []struct {
		what      string
		have, max int
	}{
		{"images", len(ix.Images), MaxImages},
		{"layers", len(ix.Layers), MaxLayers},
		{"chains", len(ix.Chains), MaxChains},
	} {
		if c.have > c.max {
			return fmt.Errorf("%d %s, at most %d are allowed", c.have, c.what, c.max)
		}
	}
	return nil
}

func checkPlaced(t *Placed) error {
	if t == nil {
		return nil
	}
	if t.Offset < firstBlockBytes || t.Offset%firstBlockBytes != 0 || t.Length <= 0 || t.Length%firstBlockBytes != 0 ||
		t.Offset > MaxContentBytes || t.Length > MaxContentBytes-t.Offset {
		return fmt.Errorf("files placed together in %d bytes at offset %d: want whole blocks of %d behind the first one", t.Length, t.Offset, firstBlockBytes)
	}
	if t.Files <= 0 || int64(t.Files) > t.Length/firstBlockBytes {
		return fmt.Errorf("%d placed files in %d blocks", t.Files, t.Length/firstBlockBytes)
	}
	return nil
}

func checkLayers(layers []Layer) error {
	first := make(map[digest.Digest]int, len(layers)) // layer by diff ID
	blobs := make(map[digest.Digest]int, len(layers))
	for i, l := range layers {
		if l.Number != i {
			return fmt.Errorf("layers[%d] has number %d: numbers count from 0 without gaps", i, l.Number)
		}
		if err := checkLayer(l); err != nil {
			return fmt.Errorf("layers[%d]: %w", i, err)
		}
		if other, ok := first[l.DiffID]; ok && (!l.StackBound || !layers[other].StackBound) {
			return fmt.Errorf("layers[%d]: diff ID %s belongs to layers[%d] already, and not both are bound to their stack", i, l.DiffID, other)
		} else if !ok {
			first[l.DiffID] = i
		}
		for _, b := range l.Blobs {
			if other, ok := blobs[b.Digest]; ok && layers[other].DiffID != l.DiffID {
				return fmt.Errorf("layers[%d]: blob %s belongs to layers[%d] already, which has another diff ID", i, b.Digest, other)
			}
			blobs[b.Digest] = i
		}
	}
	return nil
}

func checkLayer(l Layer) error {
	if err := checkDigest("diff ID", l.DiffID); err != nil {
		return err
	}
	if l.UnpackedBytes < 0 || l.UnpackedBytes > MaxContentBytes {
		return fmt.Errorf("%d unpacked bytes are not between 0 and %d", l.UnpackedBytes, int64(MaxContentBytes))
	}
	if l.Inodes < 1 || l.Inodes > MaxInodesPerLayer {
		return fmt.Errorf("%d inodes are not between 1 and %d", l.Inodes, int64(MaxInodesPerLayer))
	}
	if err := checkAttributes(l.Attributes); err != nil {
		return err
	}
	if len(l.Blobs) > MaxBlobsPerLayer {
		return fmt.Errorf("%d blobs, at most %d are allowed", len(l.Blobs), MaxBlobsPerLayer)
	}
	for i, b := range l.Blobs {
		if err := checkBlob(b.Digest, b.MediaType, b.Size); err != nil {
			return fmt.Errorf("blobs[%d]: %w", i, err)
		}
		if i > 0 && l.Blobs[i-1].Digest >= b.Digest {
			return fmt.Errorf("blobs[%d]: blobs are not sorted by digest, each once", i)
		}
	}
	return nil
}

// checkAttributes knows the form of the digests of package attrs.
func checkAttributes(s string) error {
	const prefix, hexDigits, hexChars = "blake3:", 64, "0123456789abcdef"
	sum, ok := strings.CutPrefix(s, prefix)
	if !ok || len(sum) != hexDigits || strings.Trim(sum, hexChars) != "" {
		return fmt.Errorf("attribute digest %.80q is not %s and %d lower case hex digits", s, prefix, hexDigits)
	}
	return nil
}

// checkChains returns the chains by chain ID.
func checkChains(chains []Chain, layers []Layer) (map[digest.Digest]Chain, error) {
	known := make(map[digest.Digest]Chain, len(chains))
	for i, c := range chains {
		if err := checkChain(c, known, layers); err != nil {
			return nil, fmt.Errorf("chains[%d]: %w", i, err)
		}
		known[c.ChainID] = c
	}
	return known, nil
}

func checkChain(c Chain, known map[digest.Digest]Chain, layers []Layer) error {
	if err := checkDigest("diff ID", c.DiffID); err != nil {
		return err
	}
	if c.Layer < 0 || c.Layer >= len(layers) {
		return fmt.Errorf("there is no layer %d", c.Layer)
	}
	if got := layers[c.Layer].DiffID; got != c.DiffID {
		return fmt.Errorf("its layer %d has diff ID %s, not %s", c.Layer, got, c.DiffID)
	}
	stack := []digest.Digest{c.DiffID}
	if c.Parent != "" {
		if _, ok := known[c.Parent]; !ok {
			return fmt.Errorf("its parent %.160q does not stand before it", c.Parent)
		}
		stack = []digest.Digest{c.Parent, c.DiffID}
	}
	// The stored chain ID is never believed: whoever could choose it could serve any layer for any chain.
	if want := identity.ChainID(stack); c.ChainID != want {
		return fmt.Errorf("chain ID is %.160q, parent and diff ID give %s", c.ChainID, want)
	}
	if _, ok := known[c.ChainID]; ok {
		return fmt.Errorf("chain ID %s is there twice", c.ChainID)
	}
	return nil
}

// checkDigest accepts the algorithms of the OCI image specification alone; the quoted text is cut because it may be
// megabytes of somebody's choice.
func checkDigest(what string, d digest.Digest) error {
	if len(d) > len(digest.SHA512)+1+2*digest.SHA512.Size() {
		return fmt.Errorf("%s %.80q... is too long for a digest", what, d)
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%s %q: %w", what, d, err)
	}
	algorithms := []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512}
	if !slices.Contains(algorithms, d.Algorithm()) {
		return fmt.Errorf("%s %q: algorithm is none of %v", what, d, algorithms)
	}
	return nil
}

func checkBlob(d digest.Digest, mediaType string, size int64) error {
	if err := checkDigest("digest", d); err != nil {
		return err
	}
	if err := checkName("media type", mediaType); err != nil {
		return err
	}
	if mediaType == "" {
		return errors.New("media type is empty")
	}
	if size < 0 || size > MaxContentBytes {
		return fmt.Errorf("size of %d bytes is not between 0 and %d", size, int64(MaxContentBytes))
	}
	return nil
}

// checkName bounds a short text that ends up in messages and on terminals.
func checkName(what, s string) error {
	if len(s) > maxNameBytes {
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", what, len(s), maxNameBytes)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("%s %q holds a space or control character", what, s)
	}
	return nil
}
