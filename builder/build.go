package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"berth.dev/berth/builder/gunzip"
	"berth.dev/berth/layerdisk"
)

// Build makes a layer disk. Until it has succeeded there is nothing at the output's path, or what was there before; a
// block device has no header then.
//
// Errors: ErrMismatch for content that is not what its digest says, ErrTooSmall for a disk that does not fit, and by
// class of errdefs InvalidArgument, NotFound, AlreadyExists (output exists), FailedPrecondition (device in use),
// NotImplemented (images that cannot be unpacked).
func Build(ctx context.Context, o Options) (_ *Result, err error) {
	start := time.Now()
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("build layer disk: %w", err)
	}
	retry := defaultRetryPolicy()
	if o.retry != nil {
		retry = *o.retry
	}
	notify := serialise(o.Progress)
	// Long before anything is written, and again when it is.
	if !o.Output.Reuse {
		if err := checkOutput(o.Output); err != nil {
			return nil, err
		}
	}
	p, err := makePlan(ctx, &o, retry, notify)
	defer func() { err = errors.Join(err, p.close()) }()
	if err != nil {
		return nil, err
	}
	b := &build{opts: &o, plan: p, notify: notify}
	defer func() { err = errors.Join(err, b.closeDonors()) }()
	b.unpacker = &unpacker{opts: &o, retry: retry, notify: notify}
	if o.gzipProgram != nil {
		b.unpacker.gzipProgram = *o.gzipProgram
	} else {
		b.unpacker.gzipProgram = gunzip.Program()
	}
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	notify(Event{Kind: EventPlanned, Plan: &PlanEvent{Images: len(p.images), Layers: len(p.jobs), BlobBytes: p.blobBytes()}})
	result, err := b.run(ctx)
	if err != nil {
		return nil, errors.Join(err, b.target.discard())
	}
	if err := b.target.publish(ctx); err != nil {
		return nil, errors.Join(err, b.target.discard())
	}
	result.Duration = time.Since(start)
	return result, nil
}

// open opens the output, and finds out what of the plan it has already.
func (b *build) open(ctx context.Context) (err error) {
	if !b.opts.Output.Reuse {
		if b.target, err = openTarget(b.opts.Output); err != nil {
			return err
		}
		if err := b.applyDonors(ctx); err != nil {
			return errors.Join(err, b.target.discard())
		}
		return nil
	}
	if b.target, b.base, err = openReused(b.opts.Output); err != nil {
		return err
	}
	err = b.base.apply(ctx, b.plan)
	if err == nil {
		err = b.applyDonors(ctx)
	}
	if err != nil {
		return errors.Join(err, b.target.Close()) // it still is the disk it was
	}
	if err := b.base.take(b.target); err != nil {
		return errors.Join(err, b.target.discard())
	}
	return nil
}

// build is one run.
type build struct {
	opts     *Options
	plan     *plan
	unpacker *unpacker
	target   *target
	// base is nil unless the output is added to.
	base *base
	// donors are other disks that layers are copied from.
	donors []*base
	// placed is where the files of Options.AccessLists lie together; nil if none do.
	placed *layerdisk.Placed
	notify func(Event)
}

func (b *build) run(ctx context.Context) (*Result, error) {
	if b.opts.Output.FileSystem == layerdisk.FileSystemExt4 {
		return (&ext4Writer{b}).run(ctx)
	}
	return (&erofsWriter{b}).run(ctx)
}

// unpackAll runs all layers that the disk does not have yet and returns the first block behind their data, which begins
// at block first. Data lie in the order of plan.fresh.
func (b *build) unpackAll(ctx context.Context, disk io.WriterAt, first int64) (end int64, err error) {
	jobs := b.plan.fresh()
	group, ctx := errgroup.WithContext(ctx)
	memory := newBudget(int64(b.opts.Parallel) * waitingMemoryBytes)
	spool := func() (*os.File, error) { return newSpool(b.tempDir()) }
	for _, j := range jobs {
		j.region = newRegion(ctx, disk, memory, spool)
	}
	defer func() {
		for _, j := range jobs {
			err = errors.Join(err, j.region.discard())
		}
	}()
	end = first
	group.Go(func() error {
		for _, j := range jobs {
			if err := j.region.promote(end * blockBytes); err != nil {
				return err
			}
			select {
			case <-j.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			j.first = end
			end += int64(j.layer.Blocks) //nolint:gosec // less than what was written
		}
		return nil
	})
	group.Go(func() error { return b.unpackParallel(ctx, jobs) })
	err = group.Wait()
	return end, err
}

// maxAhead of the head may be so many layers, each of which may have a spool file open.
const maxAhead = 128

// unpackParallel keeps the wanted number of layers in work, in the order of their data, so that the head is always
// among them.
func (b *build) unpackParallel(ctx context.Context, jobs []*layerJob) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(b.opts.Parallel)
	for i, j := range jobs {
		if i >= maxAhead {
			select {
			case <-jobs[i-maxAhead].region.promoted:
			case <-groupCtx.Done():
			}
		}
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error { return b.unpacker.unpack(groupCtx, j) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (b *build) tempDir() string {
	switch {
	case b.opts.Output.TempDir != "":
		return b.opts.Output.TempDir
	case b.target.device:
		return os.TempDir()
	}
	return filepath.Dir(b.opts.Output.Path)
}

// result counts what is on the disk.
func (b *build) result(id layerdisk.Identity, diskBytes int64) *Result {
	r := &Result{
		Identity: id, FileSystem: b.opts.Output.FileSystem, Images: len(b.plan.images), Layers: len(b.plan.layers),
		FetchedBytes: b.plan.blobBytes(), DiskBytes: diskBytes, WrittenBytes: b.target.written.Load(),
	}
	r.TakenFrom = b.taken()
	if b.placed != nil {
		r.PlacedFiles, r.PlacedBytes = b.placed.Files, b.placed.Length
	}
	for i, j := range b.plan.jobs {
		tree := b.plan.layers[i].tree
		r.LayerUses += j.uses
		if j.uses > 1 {
			r.SharedLayers++
		}
		if j.reuse != nil {
			r.ReusedLayers++
			r.ReusedBytes += tree.UnpackedBytes
		}
		r.UnpackedBytes += tree.UnpackedBytes
		r.Inodes += tree.Inodes
	}
	return r
}
