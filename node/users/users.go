// Package users finds who in containerd uses layers: images, containers and leases, in all namespaces.
package users

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind is the kind of a user.
type Kind string

// These are the kinds of users.
const (
	Image     Kind = "image"
	Container Kind = "container"
	Lease     Kind = "lease"
)

// User is an image, a container or a lease that uses layers.
type User struct {
	Namespace string
	Kind      Kind
	Name      string
	// Pod is the namespace and name of a container's pod in Kubernetes; empty if the container belongs to no pod.
	Pod string
	// Chains are the chain IDs of the requested stacks that the user uses, sorted.
	Chains []digest.Digest
	// Target is the digest that an image's record names.
	Target digest.Digest
}

// String returns a text such as "container web (pod default/web-1) in namespace k8s.io".
func (u User) String() string {
	text := string(u.Kind) + " " + u.Name
	if u.Pod != "" {
		text += " (pod " + u.Pod + ")"
	}
	return text + " in namespace " + u.Namespace
}

// Labels that CRI puts on containers.
const (
	labelPod          = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
)

// PodOf returns the pod of a container with these labels, as namespace and name; empty if it belongs to no pod.
func PodOf(labels map[string]string) string {
	if labels[labelPod] == "" {
		return ""
	}
	return labels[labelPodNamespace] + "/" + labels[labelPod]
}

// Find returns the users of the stacks of layers with these chain IDs: images first, then containers, then leases,
// namespace by namespace. Only images that are unpacked with the snapshotter count.
func Find(ctx context.Context, c *client.Client, snapshotter string, chains map[digest.Digest]bool) ([]User, error) {
	spaces, err := c.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("find users of layers: list namespaces: %w", err)
	}
	var all []User
	for _, ns := range spaces {
		s := search{client: c, snapshotter: snapshotter, chains: chains, namespace: ns}
		for _, look := range []func(context.Context) ([]User, error){s.images, s.containers, s.leases} {
			found, err := look(namespaces.WithNamespace(ctx, ns))
			if err != nil {
				return nil, fmt.Errorf("find users of layers in namespace %s: %w", ns, err)
			}
			all = append(all, found...)
		}
	}
	return all, nil
}

// search is a search in one namespace.
type search struct {
	client                 *client.Client
	snapshotter, namespace string
	chains                 map[digest.Digest]bool
}

func (s search) images(ctx context.Context) (users []User, _ error) {
	list, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	named := map[digest.Digest]bool{}
	for _, img := range list {
		named[img.Target.Digest] = named[img.Target.Digest] || !isID(img.Name)
	}
	for _, img := range list {
		if isID(img.Name) && named[img.Target.Digest] {
			continue
		}
		uses, err := s.image(ctx, img)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", img.Name, err)
		}
		if len(uses) > 0 {
			users = append(users, User{Namespace: s.namespace, Kind: Image, Name: img.Name, Chains: sorted(uses), Target: img.Target.Digest})
		}
	}
	return users, nil
}

// isID reports whether the name of an image is the one that CRI adds to the names that people know.
func isID(name string) bool { return digest.Digest(name).Validate() == nil }

// sorted returns the chains sorted, each once.
func sorted(chains []digest.Digest) []digest.Digest {
	slices.Sort(chains)
	return slices.Compact(chains)
}

// image returns the stacks of those of the image's platforms that are unpacked.
func (s search) image(ctx context.Context, img images.Image) (uses []digest.Digest, _ error) {
	store := s.client.ContentStore()
	visit := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsConfigType(desc.MediaType) {
			has, err := s.config(ctx, store, desc)
			uses = append(uses, has...)
			return nil, err
		}
		if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
			return nil, nil
		}
		children, err := images.Children(ctx, store, desc)
		return children, ignoreMissing(err)
	}
	err := images.Walk(ctx, images.HandlerFunc(visit), img.Target)
	return uses, err
}

// config returns the stacks of the image with this config, if it is unpacked.
func (s search) config(ctx context.Context, store content.Store, desc ocispec.Descriptor) ([]digest.Digest, error) {
	info, err := store.Info(ctx, desc.Digest)
	if err != nil || info.Labels["containerd.io/gc.ref.snapshot."+s.snapshotter] == "" {
		return nil, ignoreMissing(err)
	}
	raw, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("parse config %s: %w", desc.Digest, err)
	}
	return slices.DeleteFunc(identity.ChainIDs(config.RootFS.DiffIDs), func(c digest.Digest) bool { return !s.chains[c] }), nil
}

func (s search) containers(ctx context.Context) (users []User, _ error) {
	list, err := s.client.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if c.Snapshotter != s.snapshotter {
			continue
		}
		uses, err := s.snapshot(ctx, c.SnapshotKey)
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.ID, err)
		}
		if len(uses) > 0 {
			u := User{Namespace: s.namespace, Kind: Container, Name: c.ID, Chains: sorted(uses)}
			u.Pod = PodOf(c.Labels)
			users = append(users, u)
		}
	}
	return users, nil
}

func (s search) leases(ctx context.Context) (users []User, _ error) {
	manager := s.client.LeasesService()
	list, err := manager.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		resources, err := manager.ListResources(ctx, l)
		if err != nil {
			if errdefs.IsNotFound(err) {
				continue // it has ended meanwhile
			}
			return nil, fmt.Errorf("lease %s: %w", l.ID, err)
		}
		var all []digest.Digest
		for _, r := range resources {
			if r.Type != "snapshots/"+s.snapshotter {
				continue
			}
			uses, err := s.snapshot(ctx, r.ID)
			if err != nil {
				return nil, fmt.Errorf("lease %s: %w", l.ID, err)
			}
			all = append(all, uses...)
		}
		if len(all) > 0 {
			users = append(users, User{Namespace: s.namespace, Kind: Lease, Name: l.ID, Chains: sorted(all)})
		}
	}
	return users, nil
}

// snapshot returns the stacks that a snapshot is or lies on.
func (s search) snapshot(ctx context.Context, key string) (uses []digest.Digest, _ error) {
	for service := s.client.SnapshotService(s.snapshotter); key != ""; {
		if s.chains[digest.Digest(key)] {
			uses = append(uses, digest.Digest(key))
		}
		info, err := service.Stat(ctx, key)
		if err != nil {
			return uses, ignoreMissing(err)
		}
		key = info.Parent
	}
	return uses, nil
}

func ignoreMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
