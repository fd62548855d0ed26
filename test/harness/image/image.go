package image

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// Compression of a layer's blob.
type Compression int

// Compressions that registries serve.
const (
	Gzip Compression = iota
	Zstd
	Uncompressed
)

// Layer of a forged image.
type Layer struct {
	Entries     []Entry
	Compression Compression
}

// layer is a v1.Layer of bytes in memory whose diff ID is that of its tar.
type layer struct {
	v1.Layer
	diffID v1.Hash
}

// DiffID is the digest of the tar.
func (l layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// build the blob of the layer.
func (l Layer) build() (v1.Layer, error) {
	content, err := Tar(l.Entries...)
	if err != nil {
		return nil, err
	}
	diffID, _, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("digest layer: %w", err)
	}
	var blob bytes.Buffer
	mediaType := types.OCILayer
	switch l.Compression {
	case Gzip:
		w := gzip.NewWriter(&blob)
		if _, err = w.Write(content); err == nil {
			err = w.Close()
		}
	case Zstd:
		mediaType = types.OCILayerZStd
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(&blob); err == nil {
			if _, err = w.Write(content); err == nil {
				err = w.Close()
			}
		}
	case Uncompressed:
		mediaType = types.OCIUncompressedLayer
		_, err = blob.Write(content)
	default:
		err = fmt.Errorf("unknown compression %d", l.Compression)
	}
	if err != nil {
		return nil, fmt.Errorf("compress layer: %w", err)
	}
	return layer{Layer: static.NewLayer(blob.Bytes(), mediaType), diffID: diffID}, nil
}

// Spec of an image.
type Spec struct {
	Layers []Layer
	// Command to run, if any.
	Command []string
	// Created is recorded in the configuration; the zero time for a fixed one.
	Created time.Time
}

// New is the image, for this machine's architecture. Layers given more than once have one blob.
func New(spec Spec) (v1.Image, error) {
	layers := make([]v1.Layer, len(spec.Layers))
	for i, l := range spec.Layers {
		var err error
		if layers[i], err = l.build(); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	created := spec.Created
	if created.IsZero() {
		created = defaultMtime
	}
	return assemble(layers, spec.Command, []string{"PATH=/bin"}, created)
}

// FromLayers is an image of layers made elsewhere, for this machine's architecture.
func FromLayers(layers []v1.Layer, command, env []string) (v1.Image, error) {
	return assemble(layers, command, env, defaultMtime)
}

func assemble(layers []v1.Layer, command, env []string, created time.Time) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		return nil, fmt.Errorf("append layers: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Cmd, config.Config.Env = command, env
	config.Created = v1.Time{Time: created.UTC()}
	img, err = mutate.ConfigFile(img, config)
	if err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return img, nil
}

// BlobDigests of an image's layers, lowest first.
func BlobDigests(img v1.Image) ([]digest.Digest, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	digests := make([]digest.Digest, len(manifest.Layers))
	for i, l := range manifest.Layers {
		digests[i] = digest.Digest(l.Digest.String())
	}
	return digests, nil
}
