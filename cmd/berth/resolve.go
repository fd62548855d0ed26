package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth.dev/berth/builder"
	"berth.dev/berth/internal/program"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// imageLayers are an image's layers, lowest first, as its manifest and config name them.
type imageLayers struct {
	// Source says where the manifest was found.
	Source string
	// Manifest is its digest.
	Manifest digest.Digest
	DiffIDs  []digest.Digest
	Blobs    []ocispec.Descriptor
}

// chainID returns the chain ID of the stack that ends with layer i.
func (l *imageLayers) chainID(i int) digest.Digest { return identity.ChainID(l.DiffIDs[:i+1]) }

// resolver finds an image's manifest and config, nearest first: on the attached disks, in containerd, at the registry.
type resolver struct {
	platform string
	// plainHTTP and skipVerify name registries; "*" is all.
	plainHTTP, skipVerify []string
	// hostsDir has containerd's hosts.toml files.
	hostsDir           string
	address, namespace string
}

func (r *resolver) register(f *pflag.FlagSet) {
	f.StringVar(&r.platform, "platform", "", "`os/arch` of the image, the node's if not given")
	f.StringSliceVar(&r.plainHTTP, "plain-http", nil, "`registries` to ask over http; * is all")
	f.StringSliceVar(&r.skipVerify, "insecure-skip-verify", nil, "`registries` whose certificate is not checked; * is all")
	f.StringVar(&r.hostsDir, "hosts-dir", "", "`directory` with containerd's hosts.toml files, such as /etc/containerd/certs.d")
	f.StringVar(&r.address, "containerd-address", defaultContainerd, "containerd's `socket`")
	f.StringVarP(&r.namespace, "namespace", "n", os.Getenv("CONTAINERD_NAMESPACE"), "containerd `namespace` to look in, all if not given")
}

func (r *resolver) find(ctx context.Context, ref string, control controlv1.ControlServiceClient) (*imageLayers, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, program.Usage(fmt.Errorf("image %q: %w", ref, err))
	}
	platform := platforms.DefaultSpec()
	if r.platform != "" {
		if platform, err = platforms.Parse(r.platform); err != nil {
			return nil, program.Usage(fmt.Errorf("--platform %q: %w", r.platform, err))
		}
	}
	var tried []error
	for _, look := range []func(context.Context, string, ocispec.Platform) (*imageLayers, error){
		func(ctx context.Context, ref string, p ocispec.Platform) (*imageLayers, error) {
			return onDisk(ctx, control, ref, p)
		},
		r.inContainerd,
		r.atRegistry,
	} {
		found, err := look(ctx, named.String(), platform)
		if err == nil {
			return found, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		tried = append(tried, err)
	}
	return nil, fmt.Errorf("find image %s: %w", named, errors.Join(tried...))
}

func onDisk(ctx context.Context, control controlv1.ControlServiceClient, ref string, p ocispec.Platform) (*imageLayers, error) {
	resp, err := control.FindImage(ctx, &controlv1.FindImageRequest{Reference: ref, Platform: platforms.FormatAll(p)})
	if err != nil {
		return nil, fmt.Errorf("on the attached disks: %w", answered(err))
	}
	return parseImage("disk "+resp.GetDisk(), resp.GetManifest(), resp.GetConfig())
}

func parseImage(source string, rawManifest, rawConfig []byte) (*imageLayers, error) {
	var (
		manifest ocispec.Manifest
		config   ocispec.Image
	)
	if err := json.Unmarshal(rawManifest, &manifest); err != nil {
		return nil, fmt.Errorf("parse manifest from %s: %w", source, err)
	}
	if err := json.Unmarshal(rawConfig, &config); err != nil {
		return nil, fmt.Errorf("parse config from %s: %w", source, err)
	}
	l := &imageLayers{Source: source, Manifest: digest.FromBytes(rawManifest), DiffIDs: config.RootFS.DiffIDs, Blobs: manifest.Layers}
	if len(l.DiffIDs) != len(l.Blobs) {
		return nil, fmt.Errorf("image from %s: its config names %d layers, its manifest %d", source, len(l.DiffIDs), len(l.Blobs))
	}
	for i := range l.DiffIDs {
		if err := errors.Join(l.DiffIDs[i].Validate(), l.Blobs[i].Digest.Validate()); err != nil {
			return nil, fmt.Errorf("image from %s: layer %d: %w", source, i, err)
		}
	}
	return l, nil
}

func (r *resolver) inContainerd(ctx context.Context, ref string, p ocispec.Platform) (*imageLayers, error) {
	conn, err := r.dial()
	if err != nil {
		return nil, fmt.Errorf("in containerd: %w", err)
	}
	defer conn.Close()
	spaces, err := r.namespaces(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("in containerd: %w", err)
	}
	var tried []error
	for _, ns := range spaces {
		found, err := inNamespace(namespaces.WithNamespace(ctx, ns), conn, ref, p)
		if err == nil {
			found.Source = "containerd, namespace " + ns
			return found, nil
		}
		tried = append(tried, fmt.Errorf("in containerd's namespace %s: %w", ns, err))
	}
	return nil, errors.Join(append(tried, fmt.Errorf("in containerd: %w", errdefs.ErrNotFound))...)
}

// namespaces returns the namespaces to search.
func (r *resolver) namespaces(ctx context.Context, conn *grpc.ClientConn) ([]string, error) {
	if r.namespace != "" {
		return []string{r.namespace}, nil
	}
	resp, err := namespacesapi.NewNamespacesClient(conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", answered(err))
	}
	var names []string
	for _, ns := range resp.GetNamespaces() {
		names = append(names, ns.GetName())
	}
	return names, nil
}

// inNamespace searches the namespace of ctx.
func inNamespace(ctx context.Context, conn *grpc.ClientConn, ref string, p ocispec.Platform) (*imageLayers, error) {
	resp, err := imagesapi.NewImagesClient(conn).Get(ctx, &imagesapi.GetImageRequest{Name: ref})
	if err != nil {
		return nil, answered(err)
	}
	t := resp.GetImage().GetTarget()
	target := ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}
	store := proxy.NewContentStore(contentapi.NewContentClient(conn))
	manifest, err := images.Manifest(ctx, store, target, platforms.OnlyStrict(p))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	rawConfig, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	rawManifest, err := rawManifestOf(ctx, store, target, manifest.Config.Digest)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return parseImage("containerd", rawManifest, rawConfig)
}

// rawManifestOf finds the bytes of the manifest with this config; images.Manifest returns only the parsed form.
func rawManifestOf(ctx context.Context, store content.Provider, target ocispec.Descriptor, config digest.Digest) ([]byte, error) {
	raw, err := content.ReadBlob(ctx, store, target)
	if err != nil || !images.IsIndexType(target.MediaType) {
		return raw, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, err
	}
	for _, desc := range index.Manifests {
		raw, err := content.ReadBlob(ctx, store, desc)
		if errdefs.IsNotFound(err) {
			continue // for another platform
		}
		if err != nil {
			return nil, err
		}
		var m ocispec.Manifest
		if json.Unmarshal(raw, &m) == nil && m.Config.Digest == config {
			return raw, nil
		}
	}
	return nil, fmt.Errorf("no manifest with config %s: %w", config, errdefs.ErrNotFound)
}

// dial fails at once if there is no socket, so that a node without containerd is not waited for.
func (r *resolver) dial() (*grpc.ClientConn, error) {
	if _, err := os.Stat(r.address); err != nil {
		return nil, err
	}
	return grpc.NewClient("unix:"+r.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
}

// atRegistry asks as a build does: by containerd's client, with its hosts.toml files and the credentials of docker.
func (r *resolver) atRegistry(ctx context.Context, ref string, p ocispec.Platform) (*imageLayers, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("at the registry: %w", err)
	}
	if err := log.SetLevel("error"); err != nil { // the registry client also returns what it logs, as an error
		return nil, err
	}
	manifest, config, err := builder.Manifest(ctx, builder.Options{
		Images: []string{ref}, RegistryOnly: true, Platforms: []ocispec.Platform{p},
		Registry: builder.RegistryOptions{PlainHTTP: r.plainHTTP, InsecureSkipVerify: r.skipVerify, HostsDir: r.hostsDir},
	})
	if err != nil {
		return nil, fmt.Errorf("at the registry: %w", err)
	}
	return parseImage("registry "+reference.Domain(named), manifest, config)
}
