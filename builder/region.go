package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// spoolMemoryBytes of a layer are kept in memory before a spool file is made: most layers are smaller than that.
const spoolMemoryBytes = 8 << 20

// region takes the data blocks of one layer. Until the layer becomes the head they go into memory and then into a spool
// file without a name; promote copies what has come so far to the layer's place on the disk, and everything after that
// goes straight there.
type region struct {
	disk io.WriterAt
	// newSpool makes the spool file.
	newSpool func() (*os.File, error)
	// promoted is closed when the layer has become the head.
	promoted chan struct{}
	// done ends the wait for that.
	done <-chan struct{}

	// mu guards what follows. Only promote and the layer's own goroutine take it.
	mu     sync.Mutex
	memory []byte
	spool  *os.File
	// spooled is the length of the spool file.
	spooled int64
	// full says that the spool file's file system has no more room; the rest waits until the layer is the head.
	full bool
	head bool
	// next is the offset on the disk of the next byte, once head.
	next int64
}

var _ io.Writer = (*region)(nil)

func newRegion(ctx context.Context, disk io.WriterAt, newSpool func() (*os.File, error)) *region {
	return &region{disk: disk, newSpool: newSpool, promoted: make(chan struct{}), done: ctx.Done()}
}

// Write appends to the region.
func (r *region) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.head {
		wrote, err := r.writeSpool(p)
		if wrote || err != nil {
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

// writeSpool keeps p until later, or says that it cannot.
func (r *region) writeSpool(p []byte) (wrote bool, err error) {
	if r.full {
		return false, nil
	}
	if r.spool == nil && len(r.memory)+len(p) <= spoolMemoryBytes {
		r.memory = append(r.memory, p...)
		return true, nil
	}
	if r.spool == nil {
		if r.spool, err = r.newSpool(); err != nil {
			return false, err
		}
	}
	if len(r.memory) > 0 {
		if ok, err := r.appendSpool(r.memory); !ok || err != nil {
			return false, err
		}
		r.memory = nil
	}
	return r.appendSpool(p)
}

func (r *region) appendSpool(p []byte) (ok bool, err error) {
	_, err = r.spool.WriteAt(p, r.spooled)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
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
	if len(r.memory) > 0 {
		if _, err := r.disk.WriteAt(r.memory, r.next); err != nil {
			return err
		}
		r.next += int64(len(r.memory))
		r.memory = nil
	}
	return nil
}

// discard gives up the region.
func (r *region) discard() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.memory = nil
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
