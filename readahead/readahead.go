package readahead

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/readahead/accesslist"
)

// Disks are the disks of the node.
type Disks interface {
	// Visit lets the caller read a disk. The returned context ends with ctx, and when the disk is about to leave. Then,
	// and when it is done, the caller closes what it has open of the disk and calls leave. A disk that does not serve
	// is an error.
	Visit(ctx context.Context, diskUUID string) (visit context.Context, d Disk, leave func(), err error)
}

// Lists finds the access lists that the node can use.
type Lists interface {
	// AccessList returns the list of an image, named by its normalised reference, for a disk. If there is no list the
	// error is errdefs.ErrNotFound. It is called in the background, once for each start of an image.
	AccessList(ctx context.Context, d Disk, image string) (*accesslist.List, error)
}

// Config is what a Reader needs.
type Config struct {
	Disks Disks
	Lists Lists
	// Workers is the number of reads that one replay has under way at once, at most MaxWorkers.
	Workers int
	// Rate limits all replays together, in bytes a second; 0 sets no limit.
	Rate int64
	// MemoryShare is the share of the available memory that one replay may fill, from 0 to 1.
	MemoryShare float64
	// AtOnce is how many replays read at the same time; others wait.
	AtOnce int
	// Observer may be nil.
	Observer Observer

	// available stands in for availableMemory in tests.
	available func() (int64, error)
}

// MaxWorkers is more than any disk gains from; figures are in docs/read-ahead.md.
const MaxWorkers = 64

// Observer is told what becomes of replays.
type Observer interface {
	// ReadAhead is called when a replay has ended. It must not block.
	ReadAhead(ctx context.Context, r Run)
}

type noObserver struct{}

func (noObserver) ReadAhead(context.Context, Run) {}

const (
	// again is how long a replay counts: until then the page cache likely has what was read.
	again = 5 * time.Minute
	// waiting wishes and replays; more are forgotten, as nothing but speed is lost.
	maxWishes  = 1024
	maxWaiting = 64
)

// Reader reads ahead what access lists say. It is safe for concurrent use.
type Reader struct {
	Config
	limit  *limiter
	stop   context.CancelFunc
	wishes chan wish
	slots  chan struct{}
	// replays that run or wait for a slot.
	replays sync.WaitGroup
	ended   chan struct{}

	mu   sync.Mutex // guards what follows
	runs runs
}

// wish is a start, as far as it is known which image starts.
type wish struct {
	disk  string
	image string
	chain digest.Digest
}

// New makes a Reader, which works until ctx ends or it is closed.
func New(ctx context.Context, cfg Config) (*Reader, error) {
	if cfg.Workers < 1 || cfg.Workers > MaxWorkers || cfg.AtOnce < 1 || cfg.Rate < 0 || cfg.MemoryShare < 0 || cfg.MemoryShare > 1 {
		return nil, fmt.Errorf("read ahead with %d workers, %d at once, %d bytes a second, %g of the memory: %w",
			cfg.Workers, cfg.AtOnce, cfg.Rate, cfg.MemoryShare, errdefs.ErrInvalidArgument)
	}
	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}
	if cfg.available == nil {
		cfg.available = availableMemory
	}
	ctx, stop := context.WithCancel(ctx)
	r := &Reader{
		Config: cfg, limit: &limiter{rate: cfg.Rate}, stop: stop, wishes: make(chan wish, maxWishes),
		slots: make(chan struct{}, cfg.AtOnce), ended: make(chan struct{}), runs: newRuns(),
	}
	go r.loop(ctx)
	return r, nil
}

// closeWait is longer than any read takes of a disk that answers.
const closeWait = 5 * time.Second

// Close ends all replays and waits for them. A read of a disk that does not answer cannot be ended: after a few seconds
// Close gives up waiting for it and returns errdefs.ErrUnavailable.
func (r *Reader) Close() error {
	r.stop()
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	select {
	case <-r.ended:
		return nil
	case <-timer.C:
		return fmt.Errorf("stop reading ahead: a disk has not answered for %s: %w", closeWait, errdefs.ErrUnavailable)
	}
}

// Starting says that an image is about to start from a disk. The image is named by its reference as containerd gives
// it, by the chain ID of its layers, or by both; the chain ID of only some of its layers does no harm. It does not
// block: when too many starts wait, it drops this one.
func (r *Reader) Starting(diskUUID, image string, chainID digest.Digest) {
	select {
	case r.wishes <- wish{diskUUID, image, chainID}:
	default:
	}
}

func (r *Reader) loop(ctx context.Context) {
	defer close(r.ended)
	defer r.replays.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-r.wishes:
			r.grant(ctx, w)
		}
	}
}

// grant begins the replays that a wish asks for and that are not under way or done.
func (r *Reader) grant(ctx context.Context, w wish) {
	visit, disk, leave, err := r.Disks.Visit(ctx, w.disk)
	if err != nil {
		log.G(ctx).WithError(err).Debug("cannot read the disk ahead")
		return
	}
	defer leave()
	for _, image := range imagesOf(&disk, w) {
		run := r.begin(&disk, image)
		if run == nil {
			continue
		}
		list, listed, err := r.listFor(visit, &disk, image)
		if err != nil {
			r.end(ctx, run, err)
			continue
		}
		r.plan(run, list, listed)
		// The replay's visit is its own: this one ends here.
		r.replays.Go(func() { r.end(ctx, run, r.replay(ctx, run, list)) })
	}
}

// imagesOf a wish: the one that is named, and those of the disk that consist of the very layers.
func imagesOf(d *Disk, w wish) []string {
	var images []string
	if w.image != "" {
		images = append(images, w.image)
	}
	for i := range d.Index.Images {
		img := &d.Index.Images[i]
		if w.chain != "" && img.ChainID == w.chain && !slices.Contains(images, img.Reference) {
			images = append(images, img.Reference)
		}
	}
	return images
}

// listFor gives what of an image's list is valid on the disk, and the file system's metadata if there is no list.
func (r *Reader) listFor(ctx context.Context, d *Disk, image string) (list *accesslist.List, listed bool, err error) {
	list, err = r.Lists.AccessList(ctx, *d, image)
	if err == nil {
		list, err = list.For(d.Index, d.Identity, d.SizeBytes)
	}
	if errdefs.IsNotFound(err) {
		list, err = metadataOf(d, image)
		return list, false, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("get access list of %s: %w", image, err)
	}
	return list, true, nil
}

// errLeft says that the disk is no longer there.
var errLeft = errors.New("the disk has left")

// replay when there is a slot.
func (r *Reader) replay(ctx context.Context, run *run, list *accesslist.List) error {
	ctx, disk, leave, err := r.Disks.Visit(ctx, run.key.disk)
	if err != nil {
		return fmt.Errorf("%w: %w", errLeft, err)
	}
	defer leave()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	r.started(run)
	one := &replay{
		disk: &disk, list: list, workers: r.Workers, limit: r.limit, memory: newBudget(r.MemoryShare, r.available), progress: &run.progress,
	}
	return one.run(ctx)
}

// end notes how a replay ended.
func (r *Reader) end(ctx context.Context, run *run, err error) {
	result := ResultDone
	switch {
	case err == nil:
	case errors.Is(err, errNothing):
		result = ResultNothing
	case errors.Is(err, errMemory):
		result = ResultMemory
	case errors.Is(err, errLeft), errors.Is(err, context.Canceled):
		result = ResultStopped
	default:
		result = ResultFailed
	}
	r.mu.Lock()
	run.Ended, run.Result = time.Now(), result
	if result != ResultDone {
		run.Reason = err.Error()
	}
	if result == ResultStopped || result == ResultFailed {
		r.runs.forget(run) // the next start tries again
	}
	ended := run.snapshot(run.Ended)
	r.runs.ended.Bytes += ended.Bytes
	r.runs.ended.Pieces += ended.Pieces
	r.runs.ended.Skipped += ended.Skipped
	r.mu.Unlock()
	r.Observer.ReadAhead(ctx, ended)
}
