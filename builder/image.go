package builder

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/layerdisk"
)

// image is one image, for one platform, as it will stand in the index.
type image struct {
	record  layerdisk.Image
	source  source
	layers  []imageLayer
	created time.Time
}

// chainIDs of the image's layers, lowest first.
func (i *image) chainIDs() []digest.Digest {
	var ids []digest.Digest
	for n, l := range i.layers {
		if n == 0 {
			ids = append(ids, l.diffID)
			continue
		}
		ids = append(ids, identity.ChainID([]digest.Digest{ids[n-1], l.diffID}))
	}
	return ids
}

// imageLayer is one layer of an image.
type imageLayer struct {
	blob   ocispec.Descriptor
	diffID digest.Digest
}

// maxIndexDepth of image indexes inside image indexes.
const maxIndexDepth = 4

// candidate is a manifest in an image index.
type candidate struct {
	desc ocispec.Descriptor
	// index is the one it stands in, nil for a manifest without.
	index *ocispec.Descriptor
	raw   []byte
}

// resolver finds the images behind the sources.
type resolver struct {
	platforms []ocispec.Platform
	retry     retryPolicy
}

// resolve gives one image for each platform.
func (r resolver) resolve(ctx context.Context, src *namedSource) ([]*image, error) {
	root, err := src.root(ctx)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", src.given, err)
	}
	candidates, err := r.candidates(ctx, src, root, nil, 0)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", src.given, err)
	}
	var found []*image
	known := make(map[digest.Digest]bool)
	for _, p := range r.platforms {
		c, err := r.choose(ctx, src, candidates, p)
		if err != nil {
			return nil, fmt.Errorf("resolve %s: %w", src.given, err)
		}
		if known[c.desc.Digest] {
			continue // linux/amd64/v2 and /v3 may be the same manifest
		}
		known[c.desc.Digest] = true
		img, err := r.load(ctx, src, c, p)
		if err != nil {
			return nil, fmt.Errorf("resolve %s: %w", src.given, err)
		}
		found = append(found, img)
	}
	return found, nil
}

// candidates are all manifests below desc.
func (r resolver) candidates(ctx context.Context, src *namedSource, desc ocispec.Descriptor, parent *candidate, depth int) ([]candidate, error) {
	switch {
	case images.IsManifestType(desc.MediaType):
		c := candidate{desc: desc}
		if parent != nil {
			c.index, c.raw = &parent.desc, parent.raw
		}
		return []candidate{c}, nil
	case images.IsIndexType(desc.MediaType):
	case desc.MediaType == images.MediaTypeDockerSchema1Manifest,
		strings.HasPrefix(desc.MediaType, "application/vnd.docker.distribution.manifest.v1"):
		return nil, fmt.Errorf("manifest %s is of Docker schema 1, which nothing runs any more: push the image again with a current tool: %w", desc.Digest, errdefs.ErrNotImplemented)
	case parent != nil:
		return nil, nil // other artifacts beside the images
	default:
		return nil, fmt.Errorf("%s has media type %q, which is no container image: %w", desc.Digest, desc.MediaType, errdefs.ErrNotImplemented)
	}
	if depth >= maxIndexDepth {
		return nil, fmt.Errorf("image indexes are nested more than %d deep: %w", maxIndexDepth, errdefs.ErrInvalidArgument)
	}
	raw, err := fetchAll(ctx, src, desc, r.retry)
	if err != nil {
		return nil, fmt.Errorf("fetch image index: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("parse image index %s: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	var all []candidate
	for _, m := range index.Manifests {
		below, err := r.candidates(ctx, src, m, &candidate{desc: bare(desc), raw: raw}, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}

// bare keeps only the fields of a descriptor that do not depend on its source, so that a registry and a layout give the
// same index.
func bare(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// choose picks the manifest that containerd on a node of the platform would.
func (r resolver) choose(ctx context.Context, src *namedSource, all []candidate, want ocispec.Platform) (candidate, error) {
	match := platforms.Only(want)
	var best *candidate
	var have []string
	for i := range all {
		c := &all[i]
		p := c.desc.Platform
		if p == nil && c.index != nil {
			_, config, err := r.manifest(ctx, src, c.desc)
			if err != nil {
				return candidate{}, err
			}
			found := config.platform()
			p = &found
		}
		if p == nil {
			return *c, nil // a manifest without index; load checks it
		}
		have = append(have, platforms.FormatAll(*p))
		if match.Match(*p) && (best == nil || match.Less(*p, *best.desc.Platform)) {
			c.desc.Platform = p
			best = c
		}
	}
	if best == nil {
		return candidate{}, fmt.Errorf("the image is not there for %s; it is for: %s: %w", platforms.FormatAll(want), strings.Join(have, ", "), errdefs.ErrNotFound)
	}
	return *best, nil
}

// imageConfig is what matters here of a config.
type imageConfig struct {
	ocispec.Image
	raw  []byte
	desc ocispec.Descriptor
}

func (c *imageConfig) platform() ocispec.Platform {
	if c.OS == "" && c.Architecture == "" {
		return ocispec.Platform{}
	}
	return platforms.Normalize(c.Platform)
}

// rawManifest is a manifest with its bytes.
type rawManifest struct {
	ocispec.Manifest
	raw []byte
}

func (r resolver) manifest(ctx context.Context, src *namedSource, desc ocispec.Descriptor) (*rawManifest, *imageConfig, error) {
	m := &rawManifest{}
	var err error
	if m.raw, err = fetchAll(ctx, src, desc, r.retry); err != nil {
		return nil, nil, fmt.Errorf("fetch manifest: %w", err)
	}
	if err := json.Unmarshal(m.raw, &m.Manifest); err != nil {
		return nil, nil, fmt.Errorf("parse manifest %s: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	if !images.IsConfigType(m.Config.MediaType) {
		return nil, nil, fmt.Errorf("manifest %s has a config of media type %q, so it is no container image: %w", desc.Digest, m.Config.MediaType, errdefs.ErrNotImplemented)
	}
	c := &imageConfig{desc: m.Config}
	if c.raw, err = fetchAll(ctx, src, m.Config, r.retry); err != nil {
		return nil, nil, fmt.Errorf("fetch image config: %w", err)
	}
	if err := json.Unmarshal(c.raw, &c.Image); err != nil {
		return nil, nil, fmt.Errorf("parse image config %s: %w: %w", m.Config.Digest, err, errdefs.ErrInvalidArgument)
	}
	return m, c, nil
}

func (r resolver) load(ctx context.Context, src *namedSource, c candidate, want ocispec.Platform) (*image, error) {
	manifest, config, err := r.manifest(ctx, src, c.desc)
	if err != nil {
		return nil, err
	}
	platform := config.platform()
	switch {
	case platform.OS == "" && c.desc.Platform != nil:
		platform = platforms.Normalize(*c.desc.Platform)
	case platform.OS == "":
		platform = platforms.Normalize(want) // nothing says otherwise, and a node would run it
	case c.index == nil && !platforms.Only(want).Match(platform):
		return nil, fmt.Errorf("the image is not there for %s; it is for: %s: %w", platforms.FormatAll(want), platforms.FormatAll(platform), errdefs.ErrNotFound)
	}
	layers, err := pairLayers(manifest, config)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", c.desc.Digest, err)
	}
	img := &image{
		source: src,
		layers: layers,
		record: layerdisk.Image{
			Reference:       src.name,
			Platform:        platform,
			IndexDescriptor: c.index,
			RawIndex:        c.raw,
			Manifest:        bare(c.desc),
			RawManifest:     manifest.raw,
			Config:          bare(config.desc),
			RawConfig:       config.raw,
			ChainID:         identity.ChainID(config.RootFS.DiffIDs),
		},
	}
	if config.Created != nil {
		img.created = *config.Created
	}
	return img, nil
}

// pairLayers joins the blobs of the manifest with the diff IDs of the config.
func pairLayers(m *rawManifest, c *imageConfig) ([]imageLayer, error) {
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		return nil, fmt.Errorf("has %d layers, its config %d: %w", len(m.Layers), len(c.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	if len(m.Layers) > layerdisk.MaxLayersPerImage {
		return nil, fmt.Errorf("has %d layers, an overlay mount takes at most %d: %w", len(m.Layers), layerdisk.MaxLayersPerImage, errdefs.ErrInvalidArgument)
	}
	layers := make([]imageLayer, 0, len(m.Layers))
	for i, blob := range m.Layers {
		if err := checkLayerType(blob); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		diffID := c.RootFS.DiffIDs[i]
		for _, d := range []digest.Digest{blob.Digest, diffID} {
			if _, err := newHash(d); err != nil {
				return nil, fmt.Errorf("layer %d: %w", i, err)
			}
		}
		if blob.Size < 0 || blob.Size > layerdisk.MaxContentBytes {
			return nil, fmt.Errorf("layer %d: blob size %d: %w", i, blob.Size, errdefs.ErrInvalidArgument)
		}
		layers = append(layers, imageLayer{blob: blob, diffID: diffID})
	}
	return layers, nil
}

func checkLayerType(blob ocispec.Descriptor) error {
	switch blob.MediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd:
		return nil
	}
	if images.IsNonDistributable(blob.MediaType) {
		return fmt.Errorf("%s is foreign (%s): the registry does not have it, and its licence forbids to pass it on: %w", blob.Digest, blob.MediaType, errdefs.ErrNotImplemented)
	}
	return fmt.Errorf("%s has media type %q, which is no layer that can be unpacked: %w", blob.Digest, blob.MediaType, errdefs.ErrNotImplemented)
}
