package lifecycle_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// recorder is a Builder that knows images of made-up layers and writes their index to the device.
type recorder struct {
	g    *gate
	fake *blockdevtest.Fake

	mu sync.Mutex
	// layers of each reference; one that is not here is not found.
	layers map[string][]string
	// takes is how long a build takes, err what it ends with.
	takes time.Duration
	err   error
	// errs are for the next builds, one each, before err.
	errs   []error
	builds []lifecycle.BuildRequest
	plans  int
	// running and most count builds at once.
	running, most int
}

// set how long builds take, 0 to leave that, and what they end with.
func (r *recorder) set(takes time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if takes > 0 {
		r.takes = takes
	}
	r.err = err
}

func (r *recorder) index(spec imagesnapshot.Spec) (*layerdisk.Index, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var images []layerdisktest.Image
	for _, ref := range spec.Images {
		layers, ok := r.layers[ref]
		if !ok {
			return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
		}
		images = append(images, layerdisktest.Image{Reference: ref, Layers: layers})
	}
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, images...)
	for i := range ix.Layers {
		ix.Layers[i].UnpackedBytes = 1 << 30
	}
	return ix, nil
}

func (r *recorder) Plan(_ context.Context, req lifecycle.PlanRequest) (lifecycle.Plan, error) {
	return through(r.g, func() (lifecycle.Plan, error) {
		ix, err := r.index(req.Spec)
		if err != nil {
			return lifecycle.Plan{}, err
		}
		r.mu.Lock()
		r.plans++
		r.mu.Unlock()
		var p lifecycle.Plan
		for _, l := range ix.Layers {
			p.Layers = append(p.Layers, lifecycle.PlannedLayer{DiffID: l.DiffID, BlobBytes: 5 << 30})
		}
		for _, c := range ix.Chains {
			p.Chains = append(p.Chains, c.ChainID)
		}
		return p, nil
	})
}

func (r *recorder) Build(ctx context.Context, req lifecycle.BuildRequest) (lifecycle.BuildResult, error) {
	return through(r.g, func() (lifecycle.BuildResult, error) { return r.build(ctx, req) })
}

func (r *recorder) build(ctx context.Context, req lifecycle.BuildRequest) (lifecycle.BuildResult, error) {
	r.mu.Lock()
	r.builds = append(r.builds, req)
	r.running++
	r.most = max(r.most, r.running)
	takes, fault := r.takes, r.err
	if len(r.errs) > 0 {
		fault, r.errs = r.errs[0], r.errs[1:]
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running--
	}()
	disk, err := r.fake.OpenDevice(req.Device, true)
	if err != nil {
		return lifecycle.BuildResult{}, err
	}
	for _, d := range req.Donors {
		if err := r.requireDonor(d); err != nil {
			return lifecycle.BuildResult{}, err
		}
	}
	old := make([]byte, 1)
	if _, err := disk.ReadAt(old, 0); err != nil {
		return lifecycle.BuildResult{}, err
	}
	// A dirty volume holds 'd', a disk 'D'.
	if old[0] != 0 && (!req.Reuse || old[0] != 'D') {
		return lifecycle.BuildResult{}, fmt.Errorf("device holds %q: %w", old, errdefs.ErrAlreadyExists)
	}
	if _, err := disk.WriteAt([]byte("d"), 0); err != nil {
		return lifecycle.BuildResult{}, err
	}
	const steps = 4
	for i := range steps {
		req.Progress(100 * (i + 1) / steps)
		select {
		case <-time.After(takes / steps):
		case <-ctx.Done():
			return lifecycle.BuildResult{}, ctx.Err()
		}
	}
	if fault != nil {
		return lifecycle.BuildResult{}, fault
	}
	ix, err := r.index(req.Spec)
	if err != nil {
		return lifecycle.BuildResult{}, err
	}
	encoded, err := layerdisk.Seal(ix)
	if err != nil {
		return lifecycle.BuildResult{}, err
	}
	if _, err := disk.WriteAt(append([]byte("D"), encoded...), 0); err != nil {
		return lifecycle.BuildResult{}, err
	}
	result := lifecycle.BuildResult{Index: encoded, DiskBytes: int64(len(encoded)), FetchedBytes: 1000}
	if req.Reuse {
		result.ReusedBytes = 500
	}
	for i := range req.Donors {
		result.CopiedBytes = append(result.CopiedBytes, int64(100+i))
		result.ReusedBytes += int64(100 + i)
	}
	return result, nil
}

// requireDonor wants a disk that cannot be written to.
func (r *recorder) requireDonor(d lifecycle.Donor) error {
	disk, err := r.fake.OpenDevice(d.Device, false)
	if err != nil {
		return err
	}
	held := make([]byte, 1)
	if _, err := disk.ReadAt(held, 0); err != nil {
		return err
	}
	if held[0] != 'D' || !d.Device.ReadOnly {
		return fmt.Errorf("donor %s holds %q, read-only is %t: %w", d.Name, held, d.Device.ReadOnly, errdefs.ErrInternal)
	}
	return nil
}
