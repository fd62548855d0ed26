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

// TransferService is a Fetcher that asks containerd's transfer service. It passes on the registry's hosts.toml and the
// credentials from containerd's own configuration, which the transfer service does not read by itself.
type TransferService struct {
	Service TransferClient
	Images  images.Store
	// Registries says how containerd reaches registries now.
	Registries func(ctx context.Context) (Registries, error)
}

// Registries is how containerd reaches registries.
type Registries interface {
	// HostsDir returns a directory of hosts.toml files for a registry; empty means the one that the transfer service is
	// configured with.
	HostsDir(host string) string
	// Credentials returns the credentials for a registry. An empty secret means that there are none; an empty user with
	// a secret means a token.
	Credentials(host string) (user, secret string, err error)
}

// credentials passes credentials to the transfer service.
type credentials struct{ of Registries }

// GetCredentials implements registry.CredentialHelper.
func (c credentials) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	user, secret, err := c.of.Credentials(host)
	return registry.Credentials{Host: host, Username: user, Secret: secret}, err
}

var _ Fetcher = TransferService{}

// removeTimeout bounds removing the record that a fetch needs. A start that gives up waiting must not cut this short.
const removeTimeout = 30 * time.Second

// expireAfter is longer than a fetch takes.
const expireAfter = 24 * time.Hour

// Fetch implements Fetcher. It fetches the image by the digest that containerd has for it, because its tag may have
// moved. The fetch goes into a temporary record, which is then removed: the image's own record keeps what was fetched.
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

// temporaryLabels returns the labels of a record that is removed soon. CRI would put back a record without its label if
// it heard of the record after the removal. containerd removes a record that a crash of berthd left behind.
func temporaryLabels(now time.Time) map[string]string {
	return map[string]string{
		"io.cri-containerd.image": "managed",
		"containerd.io/gc.expire": now.Add(expireAfter).UTC().Format(time.RFC3339),
	}
}
