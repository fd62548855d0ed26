package daemon

import (
	"context"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth.dev/berth/node/criimages"
)

// restoreCRIImages brings back what CRI lost while berthd did not run.
func restoreCRIImages(ctx context.Context, n *node) {
	criimages.New(runtime.NewImageServiceClient(n.containerd), n.client.ImageService(), unpackedLayers{n.client, n.config.Import.Snapshotter}).Run(ctx)
}

// unpackedLayers asks containerd for the layers that it has in a snapshotter.
type unpackedLayers struct {
	client      *client.Client
	snapshotter string
}

var _ criimages.Layers = unpackedLayers{}

func (l unpackedLayers) Unpacked(ctx context.Context, img images.Image) (bool, error) {
	return client.NewImage(l.client, img).IsUnpacked(ctx, l.snapshotter)
}
