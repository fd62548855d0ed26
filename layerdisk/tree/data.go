package tree

import (
	"bytes"
	"context"
	"fmt"
	"hash"
	"io"
	"math"

	"github.com/zeebo/blake3"
)

const (
	// bufferSize is the size of nearly all writes of file contents.
	bufferSize = 1 << 20
	buffers    = 4
	// granule is the unit in which big files are searched for zeros, so holes begin at multiples of it. Holes shorter
	// than minHole are stored: each costs a seek when reading the file and the whole file an entry per chunk.
	granule = 64 << 10
	minHole = 1 << 20
)

// blockWriter appends file contents to a data region in whole blocks. A second goroutine hashes and writes what the
// first one collects, because both cost about as much as reading the archive.
type blockWriter struct {
	out    io.Writer
	blocks uint64 // handed out so far
	files  uint32 // files so far: their hashes are in this order
	cur    *buffer
	zeros  []byte

	free   chan *buffer
	full   chan *buffer
	failed chan struct{} // closed after err is set
	done   chan struct{}

	// Owned by the goroutine until done is closed.
	err  error
	sums [][32]byte
}

type buffer struct {
	b    []byte
	n    int
	segs []segment
}

// segment says what to hash: zeros zero bytes of a hole, then b[from:to] of the buffer; last ends the file.
type segment struct {
	zeros    int64
	from, to int
	last     bool
}

func newBlockWriter(out io.Writer) *blockWriter {
	w := &blockWriter{
		out: out, zeros: make([]byte, granule), free: make(chan *buffer, buffers), full: make(chan *buffer, buffers),
		failed: make(chan struct{}), done: make(chan struct{}),
	}
	for range buffers {
		w.free <- &buffer{b: make([]byte, bufferSize)}
	}
	go w.run()
	return w
}

func (w *blockWriter) run() {
	defer close(w.done)
	var h hash.Hash = blake3.New()
	var sum []byte
	for b := range w.full {
		if w.err == nil {
			for _, s := range b.segs {
				sum = w.hash(h, b, s, sum)
			}
			w.write(b.b[:b.n])
		}
		b.n, b.segs = 0, b.segs[:0]
		w.free <- b
	}
}

func (w *blockWriter) write(b []byte) {
	if len(b) == 0 {
		return // only holes and empty files
	}
	if _, err := w.out.Write(b); err != nil {
		w.err = fmt.Errorf("write file contents: %w", err)
		close(w.failed)
	}
}

// hash feeds one segment to h; hash.Hash never returns an error. sum is a buffer to reuse.
func (w *blockWriter) hash(h hash.Hash, b *buffer, s segment, sum []byte) []byte {
	for left := s.zeros; left > 0; {
		n := min(left, int64(len(w.zeros)))
		h.Write(w.zeros[:n])
		left -= n
	}
	h.Write(b.b[s.from:s.to])
	if !s.last {
		return sum
	}
	sum = h.Sum(sum[:0])
	w.sums = append(w.sums, [32]byte(sum))
	h.Reset()
	return sum
}

// close writes what is left and waits for the goroutine. Afterwards sums is complete if there was no error.
func (w *blockWriter) close() error {
	if w.cur != nil {
		w.full <- w.cur
		w.cur = nil
	}
	close(w.full)
	<-w.done
	return w.err
}

// room makes sure that the current buffer has n free bytes.
func (w *blockWriter) room(ctx context.Context, n int) error {
	if w.cur != nil {
		if len(w.cur.b)-w.cur.n >= n {
			return nil
		}
		w.full <- w.cur // never blocks: it holds as many as there are buffers
		w.cur = nil
	}
	select {
	case <-w.failed:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	case w.cur = <-w.free:
		return nil
	}
}

// contents is where a file's bytes went.
type contents struct {
	first  uint32 // block, if the file has no holes
	sum    uint32 // index in sums
	runs   []Run  // if it has
	sparse bool
}

// file appends size bytes of r as one file.
func (w *blockWriter) file(ctx context.Context, r fileReader, size int64) (contents, error) {
	if uint64(size+BlockSize-1)/BlockSize+w.blocks > math.MaxUint32 {
		return contents{}, overLimit("blocks of file contents", math.MaxUint32)
	}
	c := contents{first: uint32(w.blocks), sum: w.files}
	w.files++
	var err error
	if size < minHole {
		err = w.plain(ctx, r, size)
	} else {
		err = w.big(ctx, r, size, &c)
	}
	return c, err
}

func (w *blockWriter) plain(ctx context.Context, r fileReader, size int64) error {
	for {
		if err := w.room(ctx, BlockSize); err != nil {
			return err
		}
		b := w.cur
		n := int(min(size, int64(len(b.b)-b.n)))
		if err := r.fill(b.b[b.n : b.n+n]); err != nil {
			return err
		}
		size -= int64(n)
		w.take(n, 0, size == 0)
		if size == 0 {
			return nil
		}
	}
}

// take adds the next n bytes of the current buffer to the file, after zeros bytes of hole, and pads them to whole
// blocks.
func (w *blockWriter) take(n int, zeros int64, last bool) {
	b := w.cur
	b.segs = append(b.segs, segment{zeros: zeros, from: b.n, to: b.n + n, last: last})
	b.n += n
	padded := (b.n + BlockSize - 1) &^ (BlockSize - 1)
	clear(b.b[b.n:padded])
	w.blocks += uint64((n + BlockSize - 1) / BlockSize)
	b.n = padded
}

// big appends a file that may have holes. zeros counts the zero bytes seen but neither stored nor given up as a hole.
func (w *blockWriter) big(ctx context.Context, r fileReader, size int64, c *contents) error {
	var (
		zeros int64
		run   = Run{FirstBlock: c.first}
		runs  []Run
	)
	endRun := func() {
		run.Blocks = uint32(w.blocks) - run.FirstBlock
		if run.Blocks > 0 {
			runs = append(runs, run)
		}
	}
	for pos := int64(0); pos < size; {
		if err := w.room(ctx, granule); err != nil {
			return err
		}
		n := int(min(size-pos, granule))
		g := w.cur.b[w.cur.n : w.cur.n+n]
		if err := r.fill(g); err != nil {
			return err
		}
		last := pos+int64(n) == size
		zero := bytes.Equal(g, w.zeros[:n])
		pos += int64(n)
		switch {
		case zero && !last:
			zeros += int64(n)
		case zero && zeros+int64(n) >= minHole:
			endRun()
			w.take(0, zeros+int64(n), true)
			c.sparse, c.runs = true, runs
			return nil
		case zeros >= minHole:
			endRun()
			run = Run{FileBlock: uint32((pos - int64(n)) / BlockSize), FirstBlock: uint32(w.blocks)}
			c.sparse = true
			w.take(n, zeros, last)
			zeros = 0
		default:
			if err := w.store(ctx, g, zeros, last); err != nil {
				return err
			}
			zeros = 0
		}
	}
	if c.sparse {
		endRun()
		c.runs = runs
	}
	return nil
}

// store appends zeros zero bytes and then g, which stands at the end of the current buffer.
func (w *blockWriter) store(ctx context.Context, g []byte, zeros int64, last bool) error {
	if zeros == 0 {
		w.take(len(g), 0, last)
		return nil
	}
	var saved [granule]byte
	n := copy(saved[:], g)
	for ; zeros > 0; zeros -= granule {
		if err := w.room(ctx, granule); err != nil {
			return err
		}
		clear(w.cur.b[w.cur.n : w.cur.n+granule])
		w.take(granule, 0, false)
	}
	if err := w.room(ctx, granule); err != nil {
		return err
	}
	copy(w.cur.b[w.cur.n:], saved[:n])
	w.take(n, 0, last)
	return nil
}
