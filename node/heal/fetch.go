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
// credentials that containerd's own configuration has, which the transfer service by itself does not read.
type TransferService struct {
	Service TransferClient
	Images  images.Store
	// Registries says how containerd reaches registries now.
	Registries func(ctx context.Context) (Registries, error)
}

// Registries is how containerd reaches registries.
type Registries interface {
	// HostsDir is a directory of hosts.toml files for a registry; empty is the one that the transfer service is
	// configured with.
	HostsDir(host string) string
	// Credentials for a registry; an empty secret is none, and an empty user with a secret means a token.
	Credentials(host string) (user, secret string, err error)
}

// credentials hands them to the transfer service.
type credentials struct{ of Registries }

// GetCredentials implements registry.CredentialHelper.
func (c credentials) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	user, secret, err := c.of.Credentials(host)
	return registry.Credentials{Host: host, Username: user, Secret: secret}, err
}

var _ Fetcher = TransferService{}

// removeTimeout bounds taking back the record that a fetch needs, which must not be cut short because a start has given
// up waiting.
const removeTimeout = 30 * time.Second

// expireAfter is longer than a fetch takes.
const expireAfter = 24 * time.Hour

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
	registries, err := t.Registries(ctx)
	if err != nil {
		return fmt.Errorf("find out how containerd reaches registries: %w", err)
	}
	from, err := registry.NewOCIRegistry(ctx, byDigest.String(), registry.WithCredentials(credentials{registries}),
		registry.WithHostDir(registries.HostsDir(reference.Domain(named))))
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
	return t.Service.Transfer(ctx, from, image.NewStore(temporary, image.WithPlatforms(platforms.DefaultSpec()),
		image.WithImageLabels(temporaryLabels(time.Now()))))
}

// temporaryLabels are those of a record that is removed soon. CRI puts a record back that has not got its label, when
// it hears of it after that was removed; and containerd forgets one that a crash of berthd has left.
func temporaryLabels(now time.Time) map[string]string {
	return map[string]string{
		"io.cri-containerd.image": "managed",
		"containerd.io/gc.expire": now.Add(expireAfter).UTC().Format(time.RFC3339),
	}
}
