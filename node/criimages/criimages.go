// Package criimages brings back images that CRI, the part of containerd that serves Kubernetes, has lost.
//
// When containerd starts, CRI checks each image of its namespace once and drops those whose layers it cannot see, for
// example while the snapshotter does not answer. It never looks again, although the image and its layers are still
// there: the kubelet pulls the image anew, or a pod fails that may not pull. CRI does look at an image whose record
// changes. So each image that was lost in this way is updated once, without a change.
package criimages

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// Namespace is where CRI has its images.
	Namespace = "k8s.io"
	// managedLabel is on images that CRI knows, or has known.
	managedLabel = "io.cri-containerd.image"
	// interval is the time between looks. A containerd that starts needs some seconds to check its images.
	interval = 10 * time.Second
)

// CRI is the part of CRI's image service that this package needs.
type CRI interface {
	ListImages(ctx context.Context, in *runtime.ListImagesRequest, opts ...grpc.CallOption) (*runtime.ListImagesResponse, error)
}

// Records are containerd's image records. Contexts carry a namespace.
type Records interface {
	List(ctx context.Context, filters ...string) ([]images.Image, error)
	Update(ctx context.Context, image images.Image, fieldpaths ...string) (images.Image, error)
}

// Layers knows what is unpacked.
type Layers interface {
	// Unpacked reports whether our snapshotter has all layers of an image.
	Unpacked(ctx context.Context, image images.Image) (bool, error)
}

// Lost returns the images of CRI's namespace that CRI once knew and no longer shows.
func Lost(ctx context.Context, cri CRI, all []images.Image) ([]images.Image, error) {
	resp, err := cri.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images of CRI: %w", errgrpc.ToNative(err))
	}
	shown := make(map[string]bool)
	for _, img := range resp.GetImages() {
		shown[img.GetId()] = true
		for _, ref := range slices.Concat(img.GetRepoTags(), img.GetRepoDigests()) {
			shown[ref] = true
		}
	}
	var lost []images.Image
	for _, img := range all {
		if img.Labels[managedLabel] != "" && !shown[img.Name] {
			lost = append(lost, img)
		}
	}
	return lost, nil
}

// Restorer brings images back. It is not safe for concurrent use.
type Restorer struct {
	cri     CRI
	records Records
	layers  Layers
	// missing images were lost at the last look; touched ones were updated and have not been seen since. Both are by
	// name.
	missing, touched map[string]digest.Digest
}

// New makes a Restorer.
func New(cri CRI, records Records, layers Layers) *Restorer {
	return &Restorer{cri: cri, records: records, layers: layers}
}

// Run looks for lost images now and then, and brings them back, until ctx ends. The snapshotter has to answer by then.
func (r *Restorer) Run(ctx context.Context) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	reported := false
	for {
		err := r.Look(ctx)
		switch {
		case err == nil, ctx.Err() != nil, absent(err):
			reported = false
		case !reported:
			reported = true
			log.G(ctx).WithError(err).Warn("cannot bring back images that CRI has lost, trying again")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// absent reports whether there is no CRI, or CRI does not answer yet.
func absent(err error) bool {
	return errdefs.IsNotImplemented(err) || errdefs.IsUnavailable(err)
}

// Look looks once. It updates images that were lost at the look before as well: a containerd that is just starting has
// not seen them yet. Each is updated once for each time that it is lost.
func (r *Restorer) Look(ctx context.Context) error {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	all, err := r.records.List(ctx, fmt.Sprintf("labels.%q", managedLabel))
	if err != nil {
		return fmt.Errorf("list image records: %w", err)
	}
	lost, err := Lost(ctx, r.cri, all)
	if err != nil {
		return err
	}
	before, touched := r.missing, r.touched
	r.missing, r.touched = make(map[string]digest.Digest), make(map[string]digest.Digest)
	var errs []error
	for _, img := range lost {
		target := img.Target.Digest
		r.missing[img.Name] = target
		if touched[img.Name] == target {
			r.touched[img.Name] = target
			continue
		}
		if before[img.Name] != target {
			continue
		}
		switch done, err := r.restore(ctx, img); {
		case err != nil:
			errs = append(errs, fmt.Errorf("image %s: %w", img.Name, err))
		case done:
			r.touched[img.Name] = target
		}
	}
	return errors.Join(errs...)
}

// restore updates the record of an image whose layers are there.
func (r *Restorer) restore(ctx context.Context, img images.Image) (bool, error) {
	ok, err := r.layers.Unpacked(ctx, img)
	if errdefs.IsNotFound(err) || err == nil && !ok {
		return false, nil // CRI is right: it could not start
	}
	if err != nil {
		return false, fmt.Errorf("look for its layers: %w", err)
	}
	// The label keeps the value that it has.
	if _, err := r.records.Update(ctx, img, "labels."+managedLabel); err != nil {
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return false, fmt.Errorf("update its record: %w", err)
	}
	log.G(ctx).WithField("image", img.Name).Warn("CRI had lost an image that containerd has, brought it back: containerd was started while berthd did not run")
	return true, nil
}
