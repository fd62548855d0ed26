package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk/tree"
)

// progressInterval is the least time between two EventLayerProgress of one layer.
const progressInterval = 100 * time.Millisecond

// layerJob is one distinct layer and the work on it.
type layerJob struct {
	imageLayer
	number int
	// source and image are those of the first use, position is the layer's place there.
	source   source
	image    string
	position int
	// uses are the images with the layer.
	uses int

	// reuse, if not nil, says that the output has the layer already.
	reuse  *reuse
	region *region
	// first block of the layer's data on the disk.
	first int64
	// moved are files that place has put elsewhere: their first block in the layer's data to that on the disk.
	moved map[uint32]uint32
	// done is closed when layer or, with reuse, the trees there are known.
	done  chan struct{}
	layer *tree.Layer
	// tee, if not nil, gets the uncompressed archive as well.
	tee io.Writer
}

func (j *layerJob) event(fetched int64) *LayerEvent {
	return &LayerEvent{
		Number: j.number, DiffID: j.diffID, Blob: j.blob.Digest, Image: j.image, BlobBytes: j.blob.Size, FetchedBytes: fetched,
	}
}

// explain says which layer an error is about.
func (j *layerJob) explain(err error) error {
	return fmt.Errorf("layer %d of %s (blob %s): %w", j.position, j.image, j.blob.Digest, err)
}

// unpacker does the jobs.
type unpacker struct {
	opts        *Options
	retry       retryPolicy
	gzipProgram string
	notify      func(Event)
}

// unpack fetches, verifies and reads one layer.
func (u *unpacker) unpack(ctx context.Context, j *layerJob) error {
	u.notify(Event{Kind: EventLayerStarted, Layer: j.event(0)})
	l, err := u.read(ctx, j)
	if err != nil {
		return j.explain(err)
	}
	j.layer = l
	close(j.done)
	done := j.event(j.blob.Size)
	done.UnpackedBytes, done.Inodes = l.Bytes, l.Entries
	u.notify(Event{Kind: EventLayerDone, Layer: done})
	return nil
}

func (u *unpacker) read(ctx context.Context, j *layerJob) (*tree.Layer, error) {
	blob, err := newBlobReader(ctx, j.source, j.blob, u.retry, u.progress(j))
	if err != nil {
		return nil, err
	}
	t, err := u.readTar(ctx, j, blob)
	if ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), blob.Close())
	}
	// A damaged blob shows itself first in the decompressor or the archive. Its digest is the better explanation.
	if verdict := blob.finish(); verdict != nil {
		err = verdict
	}
	return t, errors.Join(err, blob.Close())
}

func (u *unpacker) readTar(ctx context.Context, j *layerJob, blob io.Reader) (_ *tree.Layer, err error) {
	h, err := newHash(j.diffID)
	if err != nil {
		return nil, err
	}
	archive, err := decompress(ctx, u.gzipProgram, blob)
	if err != nil {
		return nil, err
	}
	p := startPump(archive, h)
	defer func() {
		p.close() // before what it reads
		err = errors.Join(err, archive.Close())
	}()
	var in io.Reader = p
	if j.tee != nil {
		in = io.TeeReader(p, j.tee)
	}
	t, err := tree.Read(ctx, in, j.region, u.opts.Limits)
	if err != nil {
		// Damage in the stream itself explains more than what the reader made of it.
		if p.err != nil && !errors.Is(p.err, io.EOF) {
			return nil, p.err
		}
		return nil, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, err
	}
	p.close()
	if got := digest.NewDigest(j.diffID.Algorithm(), h); got != j.diffID {
		return nil, fmt.Errorf("its uncompressed content has diff ID %s, the image config says %s: %w", got, j.diffID, ErrMismatch)
	}
	return t, nil
}

// progress reports how much of a blob has come.
func (u *unpacker) progress(j *layerJob) func(int) {
	var fetched int64
	last := time.Now()
	return func(n int) {
		fetched += int64(n)
		if now := time.Now(); now.Sub(last) >= progressInterval {
			last = now
			u.notify(Event{Kind: EventLayerProgress, Layer: j.event(fetched)})
		}
	}
}

// serialise makes events come one at a time.
func serialise(f func(Event)) func(Event) {
	var mu sync.Mutex
	return func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		f(e)
	}
}
