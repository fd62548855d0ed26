package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"berth.dev/berth/builder"
	"berth.dev/berth/internal/program"
)

func newContent() *cobra.Command {
	cmd := &cobra.Command{Use: "content", Short: "Complete what containerd has of images"}
	cmd.AddCommand(newContentFetch())
	return cmd
}

func newContentFetch() *cobra.Command {
	var r resolver
	cmd := &cobra.Command{
		Use:   "fetch IMAGE...",
		Short: "Fetch the layers of images that containerd never fetched, for export, convert and push",
		Long: `A pull that berthd serves leaves the compressed layers in the registry, and containers do not need them. What reads
them needs them here: "ctr images export", "convert" and "push" to another registry, "nerdctl save" and "commit", and
other snapshotters.

fetch gets them from the registry into containerd's content store, for each namespace that has the image, and changes
nothing else: what runs goes on, and disks are used as before. What is there already is not fetched again.`,
		Example: "  berth content fetch nginx:1.27 && ctr images export nginx.tar docker.io/library/nginx:1.27",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, ref := range args {
				if err := r.fetchContent(cmd.Context(), ref, cmd.OutOrStdout()); err != nil {
					return fmt.Errorf("fetch the content of %s: %w", ref, err)
				}
			}
			return nil
		},
	}
	r.register(cmd.Flags())
	return cmd
}

// fetchContent fetches the content of an image in every namespace that has the image.
func (r *resolver) fetchContent(ctx context.Context, ref string, w io.Writer) error {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return program.Usage(err)
	}
	platform := platforms.DefaultSpec()
	if r.platform != "" {
		if platform, err = platforms.Parse(r.platform); err != nil {
			return program.Usage(fmt.Errorf("--platform %q: %w", r.platform, err))
		}
	}
	if err := log.SetLevel("error"); err != nil { // the registry client also returns what it logs, as an error
		return err
	}
	if _, err := os.Stat(r.address); err != nil {
		return err
	}
	c, err := client.New(r.address, client.WithTimeout(connectTimeout))
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection that only asks
	spaces := []string{r.namespace}
	if r.namespace == "" {
		if spaces, err = c.NamespaceService().List(ctx); err != nil {
			return err
		}
	}
	hosts := builder.RegistryHosts(ctx, builder.RegistryOptions{PlainHTTP: r.plainHTTP, InsecureSkipVerify: r.skipVerify, HostsDir: r.hostsDir})
	fetcher, err := docker.NewResolver(docker.ResolverOptions{Hosts: hosts}).Fetcher(ctx, named.String())
	if err != nil {
		return err
	}
	found := false
	for _, ns := range spaces {
		here := namespaces.WithNamespace(ctx, ns)
		img, err := c.ImageService().Get(here, named.String())
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		found = true
		n, err := fetchMissing(here, c, img, fetcher, platforms.OnlyStrict(platform))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s: %s fetched, namespace %s\n", named, size(n), ns); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("containerd has no such image: %w", errdefs.ErrNotFound)
	}
	return nil
}

// fetchMissing fetches what the content store lacks of an image and returns the number of bytes. A lease keeps the
// blobs until the labels of the manifest keep them.
func fetchMissing(ctx context.Context, c *client.Client, img images.Image, fetcher remotes.Fetcher, platform platforms.MatchComparer) (_ int64, err error) {
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, done(context.WithoutCancel(ctx))) }()
	store := c.ContentStore()
	var fetched atomic.Int64
	get := remotes.FetchHandler(store, fetcher)
	missing := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if _, err := store.Info(ctx, desc.Digest); err == nil || !errdefs.IsNotFound(err) {
			return nil, err
		}
		fetched.Add(desc.Size)
		return get(ctx, desc)
	})
	children := images.SetChildrenLabels(store, images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), platform), platform, 1))
	err = images.Dispatch(ctx, images.Handlers(missing, children), nil, img.Target)
	return fetched.Load(), err
}
