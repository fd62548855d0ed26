package imageimport

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/layerdisk"
)

// entry is an image of a disk that is to be registered.
type entry struct {
	layerdisk.Image
	// name is the name of the record: the reference as containerd's clients write it.
	name string
	// repository is the reference without tag and digest.
	repository string
	target     ocispec.Descriptor
	// refusal is why the image cannot be registered, nil if it can.
	refusal error
}

// chooser selects the images of a disk that may be registered.
type chooser struct {
	// patterns of normalised references, as Config.Images has them.
	patterns []string
	platform platforms.MatchComparer
}

// choose returns, for each reference of a disk, the image for this node's platform, ordered by reference. Disks come
// from others, so choose checks everything that containerd will rely on.
func (c chooser) choose(ctx context.Context, ix *layerdisk.Index) []entry {
	best := map[string]entry{}
	for i := range ix.Images {
		img := ix.Images[i]
		fits := c.platform.Match(img.Platform)
		old, ok := best[img.Reference]
		switch {
		case !ok && !fits:
			best[img.Reference] = entry{Image: img, refusal: fmt.Errorf("the disk has it for other platforms only: %w", errdefs.ErrNotFound)}
		case !fits, ok && old.refusal == nil && !c.platform.Less(img.Platform, old.Platform):
		default:
			best[img.Reference] = entry{Image: img}
		}
	}
	list := make([]entry, 0, len(best))
	for _, e := range best {
		if e.refusal == nil {
			e.refusal = c.prove(ctx, &e)
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b entry) int { return cmp.Compare(a.Reference, b.Reference) })
	return list
}

// prove determines name and target, and checks that the image's own bytes agree with what the disk says about it.
func (c chooser) prove(ctx context.Context, e *entry) error {
	if !allowed(c.patterns, e.Reference) {
		return fmt.Errorf("no pattern of import.images allows its name: %w", errdefs.ErrPermissionDenied)
	}
	named, err := reference.ParseDockerRef(e.Reference)
	if err != nil {
		return fmt.Errorf("its name is no reference: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	e.name, e.repository = named.String(), reference.TrimNamed(named).Name()
	e.target = plain(e.Manifest)
	if e.IndexDescriptor != nil {
		e.target = plain(*e.IndexDescriptor)
	}
	if digested, ok := named.(reference.Digested); ok && digested.Digest() != e.target.Digest {
		// A name with a digest promises these bytes.
		if digested.Digest() != e.Manifest.Digest {
			return fmt.Errorf("its name has another digest than the image, %s: %w", e.target.Digest, errdefs.ErrInvalidArgument)
		}
		e.target = plain(e.Manifest)
	}
	blobs := provider{}
	for _, b := range e.blobs() {
		if err := b.prove(ctx); err != nil {
			return err
		}
		blobs[b.desc.Digest] = b.data
	}
	config, err := images.Config(ctx, blobs, e.target, c.platform)
	if err != nil {
		return fmt.Errorf("containerd would not find the image in its index: %w", err)
	}
	if config.Digest != e.Config.Digest {
		return fmt.Errorf("containerd would run config %s, the disk has layers for %s: %w", config.Digest, e.Config.Digest, errdefs.ErrInvalidArgument)
	}
	return nil
}

// plain returns the descriptor as a resolver would: without what only the index says about a manifest.
func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

type blob struct {
	desc ocispec.Descriptor
	data []byte
}

// prove checks the bytes, and that everything they refer to has a digest.
func (b blob) prove(ctx context.Context) error {
	if got := b.desc.Digest.Algorithm().FromBytes(b.data); got != b.desc.Digest || int64(len(b.data)) != b.desc.Size {
		return fmt.Errorf("the disk's bytes of %s are %s: %w", b.desc.Digest, got, errdefs.ErrDataLoss)
	}
	children, err := images.Children(ctx, provider{b.desc.Digest: b.data}, b.desc)
	if err != nil {
		return fmt.Errorf("containerd cannot read %s: %w", b.desc.Digest, err)
	}
	for _, child := range children {
		if err := child.Digest.Validate(); err != nil {
			return fmt.Errorf("%s refers to %.80q: %w: %w", b.desc.Digest, child.Digest, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// blobs returns the blobs of the image; those that others refer to come first.
func (e *entry) blobs() []blob {
	list := []blob{{plain(e.Config), e.RawConfig}, {plain(e.Manifest), e.RawManifest}}
	if e.target.Digest != e.Manifest.Digest {
		list = append(list, blob{e.target, e.RawIndex})
	}
	return list
}

// allowed reports whether a reference matches one of the patterns, or there are none.
func allowed(patterns []string, ref string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return matches(p, ref) })
}

// matches reports whether s matches the pattern. '*' stands for any number of any characters, slashes included.
func matches(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, head)
	if !ok {
		return false
	}
	parts := strings.Split(rest, "*")
	for _, part := range parts[:len(parts)-1] {
		_, after, ok := strings.Cut(s, part)
		if !ok {
			return false
		}
		s = after
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

// provider holds the blobs of one image in memory.
type provider map[digest.Digest][]byte

var _ content.Provider = provider{}

// ReaderAt implements content.Provider.
func (p provider) ReaderAt(_ context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	data, ok := p[d.Digest]
	if !ok {
		return nil, fmt.Errorf("content %s: %w", d.Digest, errdefs.ErrNotFound)
	}
	return reader{strings.NewReader(string(data))}, nil
}

type reader struct{ *strings.Reader }

var _ io.ReaderAt = reader{}

func (reader) Close() error { return nil }
