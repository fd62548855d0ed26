package builder

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// A waiting layer keeps its first layerMemoryBytes in memory, since most layers are smaller than that, as long as all
// waiting layers together, complete ones included, have no more than waitingMemoryBytes for each layer in parallel.
const (
	layerMemoryBytes   = 8 << 20
	waitingMemoryBytes = 8 << 20
)

// budget is memory that regions share.
type budget struct {
	left atomic.Int64
}

func newBudget(bytes int64) *budget {
	b := &budget{}
	b.left.Store(bytes)
	return b
}

func (b *budget) take(n int) bool {
	if b.left.Add(-int64(n)) >= 0 {
		return true
	}
	b.give(n)
	return false
}

func (b *budget) give(n int) { b.left.Add(int64(n)) }

// region takes the data blocks of one layer. Until the layer becomes the head they go into memory and then into a spool
// file without a name; promote copies what has come so far to the layer's place on the disk, and everything after that
// goes straight there.
type region struct {
	disk   io.WriterAt
	budget *budget
	// newSpool makes the spool file.
	newSpool func() (*os.File, error)
	// promoted is closed when the layer has become the head.
	promoted chan struct{}
	// done ends the wait for that.
	done <-chan struct{}

	// mu guards what follows. Only promote and the layer's own goroutine take it.
	mu          sync.Mutex
	memory      [][]byte
	memoryBytes int
	spool       *os.File
	// spooled is the length of the spool file.
	spooled int64
	// full says that the spool file's file system has no more room; the rest waits until the layer is the head.
	full bool
	head bool
	// next is the offset on the disk of the next byte, once head.
	next int64
}

var _ io.Writer = (*region)(nil)

func newRegion(ctx context.Context, disk io.WriterAt, memory *budget, newSpool func() (*os.File, error)) *region {
	return &region{disk: disk, budget: memory, newSpool: newSpool, promoted: make(chan struct{}), done: ctx.Done()}
}

// Write appends to the region.
func (r *region) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.head {
		kept, err := r.keep(p)
		if kept || err != nil {
			return len(p), err
		}
		r.mu.Unlock()
		select {
		case <-r.promoted:
			r.mu.Lock()
		case <-r.done:
			r.mu.Lock()
			return 0, context.Canceled
		}
	}
	if _, err := r.disk.WriteAt(p, r.next); err != nil {
		return 0, err
	}
	r.next += int64(len(p))
	return len(p), nil
}

// keep holds p until the layer is the head, or says that it cannot.
func (r *region) keep(p []byte) (kept bool, err error) {
	if r.full {
		return false, nil
	}
	if r.spool == nil && r.memoryBytes+len(p) <= layerMemoryBytes && r.budget.take(len(p)) {
		r.memory = append(r.memory, bytes.Clone(p))
		r.memoryBytes += len(p)
		return true, nil
	}
	if r.spool == nil {
		r.spool, err = r.newSpool()
		if noSpace(err) {
			r.full = true // no room for an inode even
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("make spool file: %w", err)
		}
	}
	for len(r.memory) > 0 {
		if ok, err := r.appendSpool(r.memory[0]); !ok || err != nil {
			return false, err
		}
		r.forget(1)
	}
	return r.appendSpool(p)
}

// forget drops the first n pieces in memory.
func (r *region) forget(n int) {
	for _, p := range r.memory[:n] {
		r.memoryBytes -= len(p)
		r.budget.give(len(p))
	}
	r.memory = r.memory[n:]
}

func (r *region) appendSpool(p []byte) (ok bool, err error) {
	_, err = r.spool.WriteAt(p, r.spooled)
	if noSpace(err) {
		r.full = true
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write spool file: %w", err)
	}
	r.spooled += int64(len(p))
	return true, nil
}

// promote makes the layer the head, at offset of the disk.
func (r *region) promote(offset int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(r.promoted)
	r.head, r.next = true, offset
	if r.spool != nil {
		if err := copyFile(r.disk, offset, r.spool, r.spooled); err != nil {
			return fmt.Errorf("copy spool file: %w", err)
		}
		r.next += r.spooled
		if err := r.closeSpool(); err != nil {
			return err
		}
	}
	// What is in memory came after what is in the spool file.
	for len(r.memory) > 0 {
		if _, err := r.disk.WriteAt(r.memory[0], r.next); err != nil {
			return err
		}
		r.next += int64(len(r.memory[0]))
		r.forget(1)
	}
	return nil
}

// discard gives up the region.
func (r *region) discard() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(len(r.memory))
	return r.closeSpool()
}

func (r *region) closeSpool() error {
	if r.spool == nil {
		return nil
	}
	err := r.spool.Close()
	r.spool, r.spooled = nil, 0
	return err
}

// fileCopier is a disk that can copy from a file by itself.
type fileCopier interface {
	copyFrom(offset int64, src *os.File, n int64) (copied int64, err error)
}

// copyFile copies the first n bytes of src to the disk.
func copyFile(disk io.WriterAt, offset int64, src *os.File, n int64) error {
	var done int64
	if c, ok := disk.(fileCopier); ok {
		var err error
		if done, err = c.copyFrom(offset, src, n); err != nil {
			return err
		}
	}
	if done == n {
		return nil
	}
	_, err := io.CopyBuffer(
		struct{ io.Writer }{io.NewOffsetWriter(disk, offset+done)},
		struct{ io.Reader }{io.NewSectionReader(src, done, n-done)}, make([]byte, 1<<20))
	return err
}
