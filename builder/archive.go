package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerManifest is one image in the manifest.json of "docker save".
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// savedImage is an image of "docker save" before version 25, which had no manifest and uncompressed layers. The
// manifest made here describes the layers as they lie there, so their digests are those of no registry; diff IDs and
// chain IDs are, and the nodes find the layers by those.
type savedImage struct {
	files  files
	desc   ocispec.Descriptor
	memory map[digest.Digest][]byte
	paths  map[digest.Digest]string
}

var _ source = (*savedImage)(nil)

func (a *savedImage) root(context.Context) (ocispec.Descriptor, error) { return a.desc, nil }

func (a *savedImage) open(_ context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if b, ok := a.memory[desc.Digest]; ok {
		return io.NopCloser(bytes.NewReader(b[min(offset, int64(len(b))):])), nil
	}
	name, ok := a.paths[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("archive has no %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	f, err := a.files.open(name)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func openArchive(given, name, fileAndRef string) (_ *namedSource, err error) {
	file, ref, err := splitPath(fileAndRef)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	fs, err := openTarFiles(f)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	// Docker 25 and containerd save archives that are OCI layouts too, and those have the real manifest.
	_, hasLayout := fs.entries[ocispec.ImageLayoutFile]
	_, hasIndex := fs.entries[ocispec.ImageIndexFile]
	var src *namedSource
	if hasLayout && hasIndex {
		src, err = openLayout(given, name, ref, fs)
	} else {
		src, err = openDockerSave(given, name, ref, fs)
	}
	if err != nil {
		return nil, err
	}
	src.close = f.Close
	return src, nil
}

func openDockerSave(given, name, ref string, fs files) (*namedSource, error) {
	var manifests []dockerManifest
	if err := readJSON(fs, "manifest.json", &manifests); err != nil {
		return nil, fmt.Errorf("open %s: is no archive of docker save: %w", given, err)
	}
	m, tag, err := chooseSaved(manifests, ref)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	if name == "" {
		if tag == "" {
			return nil, fmt.Errorf("open %s: the image has no name there; give it one in front, as NAME=docker-archive:FILE: %w", given, errdefs.ErrInvalidArgument)
		}
		if name, err = normalise(tag); err != nil {
			return nil, fmt.Errorf("open %s: %w", given, err)
		}
	}
	a := &savedImage{files: fs, memory: make(map[digest.Digest][]byte), paths: make(map[digest.Digest]string)}
	if err := a.describe(m); err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	return &namedSource{given: given, name: name, source: a}, nil
}

func chooseSaved(manifests []dockerManifest, ref string) (_ dockerManifest, tag string, _ error) {
	if ref == "" {
		if len(manifests) != 1 {
			return dockerManifest{}, "", fmt.Errorf("has %d images, name one behind a colon: %s: %w",
				len(manifests), savedNames(manifests), errdefs.ErrInvalidArgument)
		}
		if tags := manifests[0].RepoTags; len(tags) > 0 {
			tag = tags[0]
		}
		return manifests[0], tag, nil
	}
	wanted, err := normalise(ref)
	if err != nil {
		return dockerManifest{}, "", err
	}
	for _, m := range manifests {
		for _, t := range m.RepoTags {
			if n, err := normalise(t); err == nil && n == wanted {
				return m, t, nil
			}
		}
	}
	return dockerManifest{}, "", fmt.Errorf("has no image %q; it has: %s: %w", ref, savedNames(manifests), errdefs.ErrNotFound)
}

func savedNames(manifests []dockerManifest) string {
	var names []string
	for _, m := range manifests {
		names = append(names, m.RepoTags...)
	}
	return strings.Join(names, ", ")
}

// describe makes the manifest. An uncompressed layer's blob digest is its diff ID, which the config tells; a compressed
// one is read for its digest.
func (a *savedImage) describe(m dockerManifest) error {
	raw, err := a.read(m.Config)
	if err != nil {
		return err
	}
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return fmt.Errorf("parse image config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("image config lists %d layers, manifest.json %d: %w", len(config.RootFS.DiffIDs), len(m.Layers), errdefs.ErrInvalidArgument)
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: images.MediaTypeDockerSchema2Manifest,
		Config:    a.keep(images.MediaTypeDockerSchema2Config, raw),
		Layers:    []ocispec.Descriptor{},
	}
	for i, p := range m.Layers {
		desc, err := a.describeLayer(p, config.RootFS.DiffIDs[i])
		if err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, desc)
	}
	encoded, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	a.desc = a.keep(images.MediaTypeDockerSchema2Manifest, encoded)
	return nil
}

func (a *savedImage) describeLayer(name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	f, err := a.files.open(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close() // a section of a file that stays open
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: images.MediaTypeDockerSchema2Layer, Digest: diffID, Size: size}
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read layer %s: %w", name, err)
	}
	switch detect(magic[:]) {
	case compressionGzip:
		desc.MediaType = images.MediaTypeDockerSchema2LayerGzip
	case compressionZstd:
		desc.MediaType = images.MediaTypeDockerSchema2LayerZstd
	case compressionNone:
		a.paths[diffID] = name
		return desc, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return ocispec.Descriptor{}, err
	}
	if desc.Digest, err = digest.FromReader(f); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read layer %s: %w", name, err)
	}
	a.paths[desc.Digest] = name
	return desc, nil
}

func (a *savedImage) read(name string) ([]byte, error) {
	f, err := a.files.open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > maxManifestBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", name, maxManifestBytes, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

func (a *savedImage) keep(mediaType string, b []byte) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	a.memory[desc.Digest] = b
	return desc
}
