package heal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/google/uuid"
)

// TransferClient is a client of containerd's transfer service.
type TransferClient interface {
	Transfer(ctx context.Context, source, destination any, opts ...transfer.Opt) error
}

// TransferService is a Fetcher that asks containerd's transfer service, which takes the registry's hosts.toml and
// credentials from containerd's own configuration.
type TransferService struct {
	Service TransferClient
	Images  images.Store
	// HostsDir is a directory of hosts.toml files; empty is the one that the transfer service is configured with.
	HostsDir string
}

var _ Fetcher = TransferService{}

// removeTimeout bounds taking back the record that a fetch needs, which must not be cut short because a start has given
// up waiting.
const removeTimeout = 30 * time.Second

// Fetch implements Fetcher. The image is fetched by the digest that containerd has of it, so that a tag that has moved
// is no other image, into a record of its own, which is removed: what is fetched is kept by the image's own record.
func (t TransferService) Fetch(ctx context.Context, img images.Image) (err error) {
	named, err := reference.ParseDockerRef(img.Name)
	if err != nil {
		return fmt.Errorf("%q names no registry: %w", img.Name, errors.Join(err, errdefs.ErrInvalidArgument))
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(named), img.Target.Digest)
	if err != nil {
		return fmt.Errorf("refer to %s by its digest: %w", img.Name, err)
	}
	from, err := registry.NewOCIRegistry(ctx, byDigest.String(), registry.WithHostDir(t.HostsDir))
	if err != nil {
		return fmt.Errorf("make registry of %s: %w", byDigest, err)
	}
	temporary := "berth.dev/heal:" + uuid.NewString()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		if gone := t.Images.Delete(ctx, temporary); gone != nil && !errdefs.IsNotFound(gone) {
			err = errors.Join(err, fmt.Errorf("remove image record %s: %w", temporary, gone))
		}
	}()
	return t.Service.Transfer(ctx, from, image.NewStore(temporary, image.WithPlatforms(platforms.DefaultSpec())))
}
