package lost

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/node/users"
)

// Selection says which images to release. Exactly one of its fields is set.
type Selection struct {
	// Disk is the name or UUID of a disk: it selects all images that need a lost layer of that disk.
	Disk string
	// Image is the name of an image's record: it selects that image, and those of the same namespace that share its
	// lost layers, because these would keep the layers.
	Image string
}

// Released is the result of a release, or of a dry run.
type Released struct {
	// Images are those whose records are removed. If they are pulled again, none of their layers is lost.
	Images []users.User
	// Remaining are the containers and leases that still need lost layers; until they are gone, a pull still finds
	// these layers lost.
	Remaining []users.User
}

// Release removes the records of images that need lost layers and waits until containerd has removed what nothing else
// needs; then a pull gets the layers as if they had never been there. With dryRun nothing is removed. If the selection
// matches no image with a lost layer, the error is errdefs.ErrNotFound.
func (f *Finder) Release(ctx context.Context, s Selection, dryRun bool) (Released, error) {
	if (s.Disk == "") == (s.Image == "") {
		return Released{}, fmt.Errorf("release images: name a disk or an image: %w", errdefs.ErrInvalidArgument)
	}
	report, err := f.List(ctx, s.Disk)
	if err != nil {
		return Released{}, err
	}
	if report.Unknown != nil {
		return Released{}, fmt.Errorf("release images: it is not known which are concerned: %w", report.Unknown)
	}
	all := concerned(report.Layers)
	chosen := s.choose(all)
	r := Released{Images: slices.DeleteFunc(slices.Clone(chosen), func(u users.User) bool { return u.Kind != users.Image })}
	if len(r.Images) == 0 {
		return Released{}, fmt.Errorf("release images: no image of %s needs a lost layer: %w", s, errdefs.ErrNotFound)
	}
	if !dryRun {
		if err := f.remove(ctx, r.Images); err != nil {
			return Released{}, err
		}
		still, err := users.Find(ctx, f.client, f.snapshotter, chainsOf(report.Layers))
		if err != nil {
			return Released{}, err
		}
		chosen = s.choose(append(still, r.Images...))
	}
	r.Remaining = slices.DeleteFunc(chosen, func(u users.User) bool { return u.Kind == users.Image })
	return r, nil
}

// String returns a text such as "disk base" or "name docker.io/library/nginx:1".
func (s Selection) String() string {
	if s.Disk != "" {
		return "disk " + s.Disk
	}
	return "name " + s.Image
}

// concerned lists the users of all layers, each once with all of its stacks.
func concerned(layers []Layer) (all []users.User) {
	for _, l := range layers {
		for _, u := range l.Users {
			known := slices.ContainsFunc(all, func(o users.User) bool {
				return o.Kind == u.Kind && o.Namespace == u.Namespace && o.Name == u.Name
			})
			if !known {
				all = append(all, u)
			}
		}
	}
	return all
}

// choose returns the users that the selection means.
func (s Selection) choose(all []users.User) []users.User {
	if s.Disk != "" {
		return slices.Clone(all)
	}
	type place struct {
		namespace string
		chain     digest.Digest
	}
	wanted := map[place]bool{}
	for _, u := range all {
		if u.Kind == users.Image && u.Name == s.Image {
			for _, c := range u.Chains {
				wanted[place{u.Namespace, c}] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(u users.User) bool {
		return !slices.ContainsFunc(u.Chains, func(c digest.Digest) bool { return wanted[place{u.Namespace, c}] })
	})
}

// remove removes the records of images, and CRI's records of the same images under other names.
func (f *Finder) remove(ctx context.Context, list []users.User) error {
	targets := map[string]map[digest.Digest]bool{}
	for _, u := range list {
		if targets[u.Namespace] == nil {
			targets[u.Namespace] = map[digest.Digest]bool{}
		}
		targets[u.Namespace][u.Target] = true
	}
	for namespace, of := range targets {
		ctx := namespaces.WithNamespace(ctx, namespace)
		records, err := f.client.ImageService().List(ctx)
		if err != nil {
			return fmt.Errorf("release images: list those of namespace %s: %w", namespace, err)
		}
		records = slices.DeleteFunc(records, func(r images.Image) bool { return !of[r.Target.Digest] })
		for i, r := range records {
			var opts []images.DeleteOpt
			if i == len(records)-1 {
				opts = append(opts, images.SynchronousDelete())
			}
			if err := f.client.ImageService().Delete(ctx, r.Name, opts...); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("release images: remove %s of namespace %s: %w", r.Name, namespace, err)
			}
		}
	}
	return nil
}
