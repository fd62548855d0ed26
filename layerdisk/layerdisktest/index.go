// Package layerdisktest makes layer disks for tests: valid indexes of images that need not exist anywhere.
package layerdisktest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/layerdisk"
)

// Image is an image to be on the disk.
type Image struct {
	// Reference, normalised and with a tag or a digest.
	Reference string
	// Platform is linux/amd64 if zero.
	Platform ocispec.Platform
	// Layers from the lowest up. Images that name the same layer share it.
	Layers []string
	// WithIndex puts the manifest into an image index.
	WithIndex bool
}

// DiffID that the layers of this name have; it is made up.
func DiffID(layer string) digest.Digest { return digest.FromString("layer " + layer) }

// BlobDigest that the layers of this name have in a registry; it is made up.
func BlobDigest(layer string) digest.Digest { return digest.FromString("blob " + layer) }

// ChainID of a stack of layers, lowest first.
func ChainID(layers ...string) digest.Digest {
	return identity.ChainID(diffIDs(layers))
}

// Index of a disk with these images, not sealed yet: change it, then call layerdisk.Seal. Its layers have no entries
// but their root, no bytes, and the attribute digest of nothing, so a test that verifies sets them.
func Index(fileSystem string, images ...Image) *layerdisk.Index {
	ix := &layerdisk.Index{
		FormatVersion: fmt.Sprintf("%d.0", layerdisk.MajorVersion),
		FileSystem:    fileSystem,
		Created:       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	for _, img := range images {
		ix.Images = append(ix.Images, image(img))
		addLayers(ix, img.Layers)
	}
	return ix
}

func diffIDs(layers []string) []digest.Digest {
	ids := make([]digest.Digest, 0, len(layers))
	for _, l := range layers {
		ids = append(ids, DiffID(l))
	}
	return ids
}

func addLayers(ix *layerdisk.Index, layers []string) {
	for i, name := range layers {
		if !slices.ContainsFunc(ix.Layers, func(l layerdisk.Layer) bool { return l.DiffID == DiffID(name) }) {
			ix.Layers = append(ix.Layers, layerdisk.Layer{
				Number:     len(ix.Layers),
				DiffID:     DiffID(name),
				Blobs:      []layerdisk.Blob{{Digest: BlobDigest(name), MediaType: ocispec.MediaTypeImageLayerGzip, Size: blobSize(name)}},
				Inodes:     1,
				Attributes: "blake3:" + strings.Repeat("0", 64),
			})
		}
		number := slices.IndexFunc(ix.Layers, func(l layerdisk.Layer) bool { return l.DiffID == DiffID(name) })
		chain := layerdisk.Chain{
			ChainID: ChainID(layers[:i+1]...), Parent: ChainID(layers[:i]...), DiffID: DiffID(name), Layer: number,
		}
		if !slices.Contains(ix.Chains, chain) {
			ix.Chains = append(ix.Chains, chain)
		}
	}
}

func blobSize(layer string) int64 { return int64(1000 + len(layer)) }

func image(img Image) layerdisk.Image {
	platform := img.Platform
	if platform.OS == "" {
		platform = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	}
	config := ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs(img.Layers)}}
	out := layerdisk.Image{Reference: img.Reference, Platform: platform, ChainID: ChainID(img.Layers...)}
	out.Config, out.RawConfig = encode(ocispec.MediaTypeImageConfig, config)
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    out.Config,
	}
	for _, l := range img.Layers {
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: BlobDigest(l), Size: blobSize(l),
		})
	}
	out.Manifest, out.RawManifest = encode(ocispec.MediaTypeImageManifest, manifest)
	if img.WithIndex {
		m := out.Manifest
		m.Platform = &platform
		index, raw := encode(ocispec.MediaTypeImageIndex, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageIndex,
			Manifests: []ocispec.Descriptor{m},
		})
		out.IndexDescriptor, out.RawIndex = &index, raw
	}
	return out
}

// encode panics where a value of this package cannot be encoded, which no caller can cause.
func encode(mediaType string, v any) (ocispec.Descriptor, []byte) {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw
}
