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

// Disks are those of the node.
type Disks interface {
	// Visit a disk. The returned context ends with ctx and when the disk is about to leave; then, and when it is done,
	// the caller closes all it has open of the disk and calls leave. A disk that is not ready is an error.
	Visit(ctx context.Context, diskUUID string) (visit context.Context, d Disk, leave func(), err error)
}

// Lists are the access lists that the node can have.
type Lists interface {
	// AccessList of an image, by its normalised reference, for a disk. None is errdefs.ErrNotFound. It is asked in the
	// background, once for each start of an image.
	AccessList(ctx context.Context, d Disk, image string) (*accesslist.List, error)
}

// Config of a Reader.
type Config struct {
	Disks Disks
	Lists Lists
	// Workers of one replay: the reads that are under way at once. Most is MaxWorkers.
	Workers int
	// Rate in bytes a second that all replays together read at; 0 is as fast as the disks give.
	Rate int64
	// MemoryShare of the memory that is available may be filled by one replay, from 0 to 1.
	MemoryShare float64
	// AtOnce is the number of replays at once; others wait.
	AtOnce int
	// Observer may be nil.
	Observer Observer

	// available stands in for availableMemory in tests.
	available func() (int64, error)
}

// MaxWorkers is more than any disk gains from; figures are in docs/read-ahead.md.
const MaxWorkers = 64

// Observer is told of each replay that has ended. It must not block.
type Observer interface {
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

// Reader is safe for concurrent use.
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

// New reader, which works until ctx ends or it is closed.
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
	h := &Reader{
		Config: cfg, limit: &limiter{rate: cfg.Rate}, stop: stop, wishes: make(chan wish, maxWishes),
		slots: make(chan struct{}, cfg.AtOnce), ended: make(chan struct{}), runs: newRuns(),
	}
	go h.loop(ctx)
	return h, nil
}

// closeWait is longer than any read takes of a disk that answers.
const closeWait = 5 * time.Second

// Close ends all replays and waits for that, but not for a read of a disk that does not answer: that nobody can end.
func (h *Reader) Close() error {
	h.stop()
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	select {
	case <-h.ended:
		return nil
	case <-timer.C:
		return fmt.Errorf("stop reading ahead: a disk has not answered for %s: %w", closeWait, errdefs.ErrUnavailable)
	}
}

// Starting tells that an image is about to start from a disk. The image is named by its reference as containerd tells
// it, by the chain ID of its layers, or by both; the chain ID of some of its layers does no harm. It does not block:
// what cannot be remembered is forgotten.
func (h *Reader) Starting(diskUUID, image string, chainID digest.Digest) {
	select {
	case h.wishes <- wish{diskUUID, image, chainID}:
	default:
	}
}

func (h *Reader) loop(ctx context.Context) {
	defer close(h.ended)
	defer h.replays.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-h.wishes:
			h.grant(ctx, w)
		}
	}
}

// grant begins the replays that a wish asks for and that are not under way or done.
func (h *Reader) grant(ctx context.Context, w wish) {
	visit, disk, leave, err := h.Disks.Visit(ctx, w.disk)
	if err != nil {
		log.G(ctx).WithError(err).Debug("disk is not read ahead")
		return
	}
	defer leave()
	for _, image := range imagesOf(&disk, w) {
		run := h.begin(&disk, image)
		if run == nil {
			continue
		}
		list, listed, err := h.listFor(visit, &disk, image)
		if err != nil {
			h.end(ctx, run, err)
			continue
		}
		h.plan(run, list, listed)
		// The replay's visit is its own: this one ends here.
		h.replays.Go(func() { h.end(ctx, run, h.replay(ctx, run, list)) })
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
func (h *Reader) listFor(ctx context.Context, d *Disk, image string) (list *accesslist.List, listed bool, err error) {
	list, err = h.Lists.AccessList(ctx, *d, image)
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
func (h *Reader) replay(ctx context.Context, run *run, list *accesslist.List) error {
	ctx, disk, leave, err := h.Disks.Visit(ctx, run.key.disk)
	if err != nil {
		return fmt.Errorf("%w: %w", errLeft, err)
	}
	defer leave()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	h.started(run)
	r := &replay{
		disk: &disk, list: list, workers: h.Workers, limit: h.limit, memory: newBudget(h.MemoryShare, h.available), progress: &run.progress,
	}
	return r.run(ctx)
}

// end notes how a replay ended.
func (h *Reader) end(ctx context.Context, run *run, err error) {
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
	h.mu.Lock()
	run.Ended, run.Result = time.Now(), result
	if result != ResultDone {
		run.Reason = err.Error()
	}
	if result == ResultStopped || result == ResultFailed {
		h.runs.forget(run) // the next start tries again
	}
	ended := run.snapshot(run.Ended)
	h.runs.ended.Bytes += ended.Bytes
	h.runs.ended.Pieces += ended.Pieces
	h.runs.ended.Skipped += ended.Skipped
	h.mu.Unlock()
	h.Observer.ReadAhead(ctx, ended)
}
