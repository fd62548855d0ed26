package heal

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// mostConfigBytes bounds the size of an image config, as the index of a layer disk does.
const mostConfigBytes = 8 << 20

// find lists the images that have the layer; those that have it in the same stack come first. A layer with the same
// diff ID in another stack will do as well: its compressed form holds the same bytes.
func (h *Healer) find(ctx context.Context, l Layer) ([]source, error) {
	all, err := h.containerd.Namespaces(ctx)
	if err != nil {
		return nil, fmt.Errorf("list namespaces of containerd: %w", err)
	}
	var same, other []source
	for _, namespace := range all {
		ctx := namespaces.WithNamespace(ctx, namespace)
		list, err := h.containerd.Images.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("list images of namespace %s: %w", namespace, err)
		}
		for _, img := range list {
			manifest, config, err := h.read(ctx, img)
			if err != nil {
				// Skip an image that is being pulled or is damaged.
				log.G(ctx).WithError(err).WithField("image", img.Name).Debug("image is not looked at for a lost layer")
				continue
			}
			for i, diffID := range config.RootFS.DiffIDs {
				if diffID != l.DiffID || i >= len(manifest.Layers) {
					continue
				}
				s := source{namespace, img, manifest.Layers[i]}
				if identity.ChainID(config.RootFS.DiffIDs[:i+1]) == l.ChainID {
					same = append(same, s)
				} else {
					other = append(other, s)
				}
				break
			}
		}
	}
	return append(same, other...), nil
}

// read returns an image's manifest and config for this node's platform.
func (h *Healer) read(ctx context.Context, img images.Image) (manifest ocispec.Manifest, config ocispec.Image, err error) {
	manifest, err = images.Manifest(ctx, h.containerd.Content, img.Target, h.platform)
	if err != nil {
		return manifest, config, fmt.Errorf("read manifest: %w", err)
	}
	if manifest.Config.Size > mostConfigBytes {
		return manifest, config, fmt.Errorf("config has %d bytes, at most %d are read", manifest.Config.Size, mostConfigBytes)
	}
	raw, err := content.ReadBlob(ctx, h.containerd.Content, manifest.Config)
	if err != nil {
		return manifest, config, fmt.Errorf("read config: %w", err)
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return manifest, config, fmt.Errorf("read config: %w", err)
	}
	return manifest, config, nil
}
