package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/layerdisk"
)

// resolveParallel is the number of images resolved at once.
const resolveParallel = 4

// plan is what will be on the disk.
type plan struct {
	images []*image
	jobs   []*layerJob
	// layers and chains are there after stack.
	layers []*diskLayer
	chains []layerdisk.Chain
	// order of the layers, lower ones before those on them.
	order []int
	// close releases the sources.
	sources []*namedSource
}

func (p *plan) close() error {
	var errs []error
	for _, s := range p.sources {
		if s != nil && s.close != nil {
			errs = append(errs, s.close())
		}
	}
	return errors.Join(errs...)
}

// makePlan resolves all images. The plan has to be closed even if there is an error.
func makePlan(ctx context.Context, o *Options, retry retryPolicy, notify func(Event)) (*plan, error) {
	p := &plan{sources: make([]*namedSource, len(o.Images))}
	registry := newRegistryClient(ctx, o.Registry, retry)
	for i, given := range o.Images {
		src, err := openSource(given, registry, o.RegistryOnly)
		if err != nil {
			return p, err
		}
		p.sources[i] = src
	}
	found := make([][]*image, len(p.sources))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(resolveParallel)
	for i, src := range p.sources {
		group.Go(func() (err error) {
			found[i], err = resolver{platforms: o.Platforms, retry: retry}.resolve(groupCtx, src)
			for _, img := range found[i] {
				resolved := img.event()
				notify(Event{Kind: EventResolved, Image: &resolved})
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return p, err
	}
	for _, images := range found {
		for _, img := range images {
			if err := p.add(img); err != nil {
				return p, err
			}
		}
	}
	p.listLayers()
	return p, nil
}

// Plan reports what images consist of, without fetching layers. It ignores Options.Output and returns the same errors
// as Build.
func Plan(ctx context.Context, o Options) (_ *Contents, err error) {
	o.planOnly, o.Output = true, Output{}
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("plan layer disk: %w", err)
	}
	retry := defaultRetryPolicy()
	if o.retry != nil {
		retry = *o.retry
	}
	p, err := makePlan(ctx, &o, retry, serialise(o.Progress))
	defer func() { err = errors.Join(err, p.close()) }()
	if err != nil {
		return nil, err
	}
	c := &Contents{}
	known := make(map[digest.Digest]bool)
	for _, img := range p.images {
		c.Images = append(c.Images, img.event())
		for _, chainID := range img.chainIDs() {
			if !known[chainID] {
				known[chainID] = true
				c.Chains = append(c.Chains, chainID)
			}
		}
	}
	for _, j := range p.jobs {
		c.Layers = append(c.Layers, ContentsLayer{DiffID: j.diffID, Blob: j.blob.Digest, BlobBytes: j.blob.Size})
	}
	return c, nil
}

func (i *image) event() ImageEvent {
	return ImageEvent{
		Reference: i.record.Reference, Platform: platforms.FormatAll(i.record.Platform),
		Manifest: i.record.Manifest.Digest, Layers: len(i.layers),
	}
}

// add takes an image once however often it was listed.
func (p *plan) add(img *image) error {
	for _, have := range p.images {
		if have.record.Reference != img.record.Reference ||
			platforms.FormatAll(have.record.Platform) != platforms.FormatAll(img.record.Platform) {
			continue
		}
		if have.record.Manifest.Digest == img.record.Manifest.Digest {
			return nil
		}
		return fmt.Errorf("%s for %s is listed twice with different content (manifests %s and %s): %w", img.record.Reference,
			platforms.FormatAll(img.record.Platform), have.record.Manifest.Digest, img.record.Manifest.Digest, errdefs.ErrInvalidArgument)
	}
	p.images = append(p.images, img)
	return nil
}

// listLayers numbers the distinct layers in the order of their first use.
func (p *plan) listLayers() {
	known := make(map[digest.Digest]*layerJob)
	for _, img := range p.images {
		here := make(map[digest.Digest]bool)
		for i, l := range img.layers {
			j, ok := known[l.diffID]
			if !ok {
				j = &layerJob{
					imageLayer: l, number: len(p.jobs), source: img.source, image: img.record.Reference, position: i, done: make(chan struct{}),
				}
				known[l.diffID] = j
				p.jobs = append(p.jobs, j)
			}
			if !here[l.diffID] {
				here[l.diffID] = true
				j.uses++
			}
		}
	}
}

// fresh are the jobs with work to do, in the order in which they are begun and in which their data lie on the disk:
// large ones first, since the first goes straight to its place while the others wait, and since the last one running
// should be a short one.
func (p *plan) fresh() []*layerJob {
	var jobs []*layerJob
	for _, j := range p.jobs {
		if j.reuse == nil {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b *layerJob) int {
		return cmp.Or(cmp.Compare(b.blob.Size, a.blob.Size), cmp.Compare(a.number, b.number))
	})
	return jobs
}

// blobBytes to fetch.
func (p *plan) blobBytes() int64 {
	var sum int64
	for _, j := range p.fresh() {
		sum += j.blob.Size
	}
	return sum
}

// created is the newest creation time of the images, whole seconds since 1970 at least, for images made without a
// clock.
func (p *plan) created() time.Time {
	newest := time.Unix(0, 0)
	for _, img := range p.images {
		if img.created.After(newest) {
			newest = img.created
		}
	}
	return newest.UTC()
}

// index describes the disk, but for what Seal adds. attributes are the digests of the layers' listings.
//
// If a layer has several blob digests, only the fetched one is recorded. Only a manifest claims that the others unpack
// to the same content, and a node that matches by blob digest would serve this layer to every image with that blob.
func (p *plan) index(o *Options, attributes []string) layerdisk.Index {
	ix := layerdisk.Index{FileSystem: o.Output.FileSystem, Created: o.Created, Chains: p.chains}
	if o.Created.IsZero() {
		ix.Created = p.created()
	}
	for _, img := range p.images {
		ix.Images = append(ix.Images, img.record)
	}
	for i, l := range p.layers {
		blobs := []layerdisk.Blob{{Digest: l.blob.Digest, MediaType: l.blob.MediaType, Size: l.blob.Size}}
		if l.reuse != nil {
			blobs = l.reuse.blobs
		}
		ix.Layers = append(ix.Layers, layerdisk.Layer{
			Number:        i,
			DiffID:        l.diffID,
			Blobs:         blobs,
			UnpackedBytes: l.tree.UnpackedBytes,
			Inodes:        l.tree.Inodes,
			Attributes:    attributes[i],
			StackBound:    l.bound,
		})
	}
	return ix
}
