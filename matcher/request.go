package matcher

import (
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// Limits of a request.
const (
	// MaxImages in one request. Alibaba's query of the best match (DescribeImageCaches) takes as many.
	MaxImages = 100
	// MaxReferenceBytes of a reference: registry name, repository, tag and digest are far shorter.
	MaxReferenceBytes = 1024
	// MaxDisks that may be newly attached for one request, whatever [Rules.MaxAttach] says.
	MaxDisks = 16
	// DefaultMaxAttach is used where [Rules.MaxAttach] is 0.
	DefaultMaxAttach = 2
	// DefaultExplain is used where [Request.Explain] is 0.
	DefaultExplain = 20
)

// ErrInvalidRequest says that a request cannot be answered: no images, too many, malformed digests or negative sizes.
var ErrInvalidRequest = errors.New("invalid match request")

// Request asks for the best image snapshots for the images of one pod or one pull.
type Request struct {
	// Images of all containers, init containers included, one entry per container. The same image may stand there
	// several times: it is downloaded once, but counts as often as it stands there for [Rules.MatchCount]. They are
	// taken to be pulled one after another in this order, which decides what a pull finds there.
	Images []Image
	Rules  Rules
	// Now is the time at which candidates may have expired. The zero time expires nothing.
	Now time.Time
	// Explain is the highest number of candidates that the decision explains, best first; 0 means DefaultExplain, a
	// negative number none. The pinned and the chosen ones are always explained.
	Explain int
}

// Image is one requested image for one platform.
type Image struct {
	// Reference is normalised: docker.io/library/nginx:1.27 or docker.io/library/nginx@sha256:….
	Reference string
	// Platform that is wanted; the zero Platform takes any.
	Platform Platform
	// ManifestDigest is that of the manifest for Platform, empty if it is not known.
	ManifestDigest digest.Digest
	// Layers from the lowest up, nil if they are not known.
	Layers []Layer
}

// Layer is one layer of a requested image or on the disk of a candidate. Any of its digests may be empty if it is not
// known; a layer matches by the widest digest that both sides know. [Index.Match] works chain IDs out where the diff
// IDs are known, and does not look at ParentChainID. A candidate's layer with several compressed forms is listed once
// for each of them.
type Layer struct {
	layerdisk.LayerName
	// CompressedBytes is what a registry sends for the layer, 0 if it is not known.
	CompressedBytes int64
	// UnpackedBytes is the size of the layer's files, 0 if it is not known.
	UnpackedBytes int64
	// StackBound layers of candidates are found by chain ID alone, see layerdisk.Layer.
	StackBound bool
	// Present layers of requests are on the node already: nothing is looked for in their place.
	Present bool
}

// Platform of an image, normalised as containerd does it: lower case, arm64 without variant v8.
type Platform struct {
	OS           string
	Architecture string
	Variant      string
}

// String is the usual form, linux/arm/v7, and "any" for the zero Platform.
func (p Platform) String() string {
	switch {
	case p == Platform{}:
		return "any"
	case p.Variant == "":
		return p.OS + "/" + p.Architecture
	default:
		return p.OS + "/" + p.Architecture + "/" + p.Variant
	}
}

// fits reports whether an image for other serves p. An unknown platform fits every other.
func (p Platform) fits(other Platform) bool {
	return p == other || p == Platform{} || other == Platform{}
}

// validate checks what Match relies on.
func (r *Request) validate() error {
	if len(r.Images) == 0 {
		return fmt.Errorf("%w: it names no image", ErrInvalidRequest)
	}
	if len(r.Images) > MaxImages {
		return fmt.Errorf("%w: %d images, at most %d are allowed", ErrInvalidRequest, len(r.Images), MaxImages)
	}
	for i := range r.Images {
		if err := r.Images[i].validate(); err != nil {
			return fmt.Errorf("%w: images[%d]: %w", ErrInvalidRequest, i, err)
		}
	}
	if err := r.Rules.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	return nil
}

func (img *Image) validate() error {
	if img.Reference == "" && img.ManifestDigest == "" {
		return errors.New("neither reference nor manifest digest")
	}
	if len(img.Reference) > MaxReferenceBytes {
		return fmt.Errorf("reference has %d bytes, at most %d are allowed", len(img.Reference), MaxReferenceBytes)
	}
	if err := checkDigest("manifest digest", img.ManifestDigest); err != nil {
		return err
	}
	if len(img.Layers) > layerdisk.MaxLayersPerImage {
		return fmt.Errorf("%d layers, at most %d are allowed", len(img.Layers), layerdisk.MaxLayersPerImage)
	}
	for i := range img.Layers {
		if err := img.Layers[i].validate(); err != nil {
			return fmt.Errorf("layers[%d]: %w", i, err)
		}
	}
	return nil
}

func (l *Layer) validate() error {
	if l.CompressedBytes < 0 || l.UnpackedBytes < 0 {
		return errors.New("a size is negative")
	}
	if l.CompressedBytes > maxLayerBytes || l.UnpackedBytes > maxLayerBytes {
		return fmt.Errorf("a size is above %d bytes", int64(maxLayerBytes))
	}
	if err := checkDigest("chain ID", l.ChainID); err != nil {
		return err
	}
	if err := checkDigest("diff ID", l.DiffID); err != nil {
		return err
	}
	return checkDigest("blob", l.Blob)
}

// maxLayerBytes keeps sums of all layers of all images of a request well within an int64.
const maxLayerBytes = 1 << 46

// checkDigest takes the empty digest, which stands for one that is not known. Indexing a large fleet checks millions of
// them, so the usual algorithm is checked without the regular expression of Validate.
func checkDigest(what string, d digest.Digest) error {
	if d == "" || isSHA256(d) {
		return nil
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%s %.160q: %w", what, d, err)
	}
	return nil
}

const sha256Prefix = "sha256:"

func isSHA256(d digest.Digest) bool {
	if len(d) != len(sha256Prefix)+64 || d[:len(sha256Prefix)] != sha256Prefix {
		return false
	}
	for i := len(sha256Prefix); i < len(d); i++ {
		if c := d[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
