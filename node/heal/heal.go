// Package heal remakes layers whose disks are lost: it takes the compressed layer from containerd's content store, or
// asks containerd to fetch it, verifies it, and unpacks it as containerd's unpacker would.
//
// Everything it needs to know is in containerd: an image that has the layer names its compressed form and the registry
// that has it. containerd fetches with its own hosts.toml and credentials.
package heal

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fetcher asks containerd to fetch what an image lacks.
type Fetcher interface {
	// Fetch returns when the content store of the context's namespace has all content of the image's platform. The
	// image's record and tags stay as they are.
	Fetch(ctx context.Context, img images.Image) error
}

// Containerd is the part of containerd that a Healer needs. Contexts carry a namespace.
type Containerd struct {
	// Namespaces lists all of them.
	Namespaces func(ctx context.Context) ([]string, error)
	Images     images.Store
	Content    content.Store
	Fetcher    Fetcher
}

// Healer remakes layers. It is safe for concurrent use.
type Healer struct {
	containerd Containerd
	platform   platforms.MatchComparer
}

// New makes a Healer for images of a platform.
func New(c Containerd, platform platforms.MatchComparer) *Healer {
	return &Healer{containerd: c, platform: platform}
}

// Layer is a layer that no disk has any more.
type Layer struct {
	// ChainID and DiffID are proved to belong together.
	ChainID, DiffID digest.Digest
	// Dir is an empty directory for the layer's files. Parents are the directories of the layers below, the highest
	// first.
	Dir     string
	Parents []string
}

// source is a compressed form of a layer in an image that containerd knows.
type source struct {
	namespace string
	image     images.Image
	blob      ocispec.Descriptor
}

// MakeLayer unpacks the layer. After an error the contents of Dir are useless. errdefs.ErrNotFound means that no image
// in containerd has the layer; other errors name the layer, each image that has it, why that did not help, and what to
// do.
func (h *Healer) MakeLayer(ctx context.Context, l Layer) error {
	sources, err := h.find(ctx, l)
	if err != nil {
		return fmt.Errorf("make layer %s anew: %w", l.DiffID, err)
	}
	if len(sources) == 0 {
		return fmt.Errorf("make layer %s anew: no image in containerd has it, attach a disk that has it: %w", l.DiffID, errdefs.ErrNotFound)
	}
	// First try what containerd has already: it needs no registry.
	var failed error
	for _, fetch := range []bool{false, true} {
		for _, s := range sources {
			err := h.from(ctx, l, s, fetch)
			if err == nil {
				log.G(ctx).WithFields(log.Fields{"diff_id": l.DiffID, "blob": s.blob.Digest, "image": s.image.Name, "namespace": s.namespace, "fetched": fetch}).
					Info("layer of a lost disk is made anew")
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("make layer %s anew: %w", l.DiffID, ctx.Err())
			}
			if fetch || !errdefs.IsNotFound(err) {
				failed = errors.Join(failed, fmt.Errorf("image %s in namespace %s: %w", s.image.Name, s.namespace, err))
			}
			if err := empty(l.Dir); err != nil {
				return fmt.Errorf("make layer %s anew: %w", l.DiffID, err)
			}
		}
	}
	return fmt.Errorf("make layer %s anew: %w; fetch the image's content with its credentials (\"ctr content fetch IMAGE\"), "+
		"attach a disk that has the layer, or remove the image", l.DiffID, failed)
}

// from makes the layer from one image.
func (h *Healer) from(ctx context.Context, l Layer, s source, fetch bool) error {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	if fetch {
		if err := h.containerd.Fetcher.Fetch(ctx, s.image); err != nil {
			return fmt.Errorf("fetch blob %s: %w", s.blob.Digest, err)
		}
	}
	r, err := h.containerd.Content.ReaderAt(ctx, s.blob)
	if err != nil {
		return fmt.Errorf("read blob %s: %w", s.blob.Digest, err)
	}
	defer r.Close() //nolint:errcheck // only read
	return unpack(ctx, content.NewReader(r), s.blob, l)
}
