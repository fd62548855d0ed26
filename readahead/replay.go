package readahead

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
)

// Disk is a layer disk of the node. It is mounted, and stays so for as long as the visit lasts. Its fields are those of
// stage.Visit, in the same order, so that one converts into the other: what reads ahead does not know the stage, and
// the stage does not know what reads ahead.
type Disk struct {
	Name     string
	Identity layerdisk.Identity
	// Device is the path of the block device, DeviceNumber the number that the path must have.
	Device       string
	DeviceNumber uint64
	MountPoint   string
	// Mounted is when the disk was mounted, which an earlier daemon may have done.
	Mounted time.Time
	// SizeBytes of the device belong to the disk; nothing behind them is read.
	SizeBytes int64
	// Index is shared and must not be changed.
	Index *layerdisk.Index
}

// layerDirs are the directories of layers by diff ID. Of several layers with the same one, which are each right on
// their own stack alone, it is that of the image.
func (d *Disk) layerDirs(image string) map[digest.Digest]string {
	dirs := make(map[digest.Digest]string, len(d.Index.Layers))
	put := func(l *layerdisk.Layer) {
		dirs[l.DiffID] = filepath.Join(d.MountPoint, filepath.FromSlash(layerdisk.LayerDir(l.Number)))
	}
	for i := range d.Index.Layers {
		put(&d.Index.Layers[i])
	}
	look := layerdisk.NewLookup(d.Index)
	for _, img := range look.Images(image, platforms.Default()) {
		for _, l := range look.Stack(img.ChainID) {
			put(&l)
		}
	}
	return dirs
}

// progress of one replay.
type progress struct {
	// bytes and pieces that were read; skipped are parts of the list that are not there.
	bytes, pieces, skipped atomic.Int64
}

// errMemory ends a replay that would only push out what it has read.
var errMemory = errors.New("no more memory may be filled")

// replay of one list on one disk.
type replay struct {
	disk    *Disk
	list    *accesslist.List
	workers int
	limit   *limiter
	memory  *budget
	*progress
}

// run reads everything, in order, until it is done or ctx ends, and closes all it has opened of the disk. The first
// error of the disk ends it: a disk that cannot be read is not helped by more reads.
func (r *replay) run(ctx context.Context) (err error) {
	var device *os.File
	if len(r.list.Metadata) > 0 {
		if device, err = openDevice(r.disk); err != nil {
			return err
		}
		defer device.Close() //nolint:errcheck // opened for reading
	}
	open, err := openLayers(r.disk, r.list)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, open.close()) }()
	todo := &pieces{list: r.list}
	group, ctx := errgroup.WithContext(ctx)
	for range r.workers {
		group.Go(func() error {
			runtime.LockOSThread() // for good: the thread ends with the goroutine, and its priority with it
			lowerPriority()
			return r.work(ctx, todo, device, open)
		})
	}
	return group.Wait()
}

func (r *replay) work(ctx context.Context, todo *pieces, device *os.File, open layers) error {
	for ctx.Err() == nil {
		p, ok := todo.next()
		if !ok {
			return nil
		}
		if !r.memory.take(p.length) {
			return errMemory
		}
		if err := r.limit.wait(ctx, p.length); err != nil {
			return err
		}
		n, err := r.read(p, device, open)
		if n < p.length {
			todo.skip(p)
		}
		if errors.Is(err, errNotThere) {
			if p.first {
				r.skipped.Add(1)
			}
			continue
		}
		if err != nil {
			return err
		}
		r.bytes.Add(n)
		r.pieces.Add(1)
	}
	return ctx.Err()
}

// read a piece and return how much of it there is.
func (r *replay) read(p piece, device *os.File, open layers) (int64, error) {
	if p.device {
		n := min(p.length, r.disk.SizeBytes-p.offset)
		if n <= 0 {
			return 0, errNotThere
		}
		if err := bring(int(device.Fd()), p.offset, n); err != nil {
			return 0, fmt.Errorf("read %d bytes at %d of %s: %w", n, p.offset, device.Name(), err)
		}
		return n, nil
	}
	f := &r.list.Files[p.file]
	fd, size, err := open.file(f.DiffID, f.Path)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd) //nolint:errcheck // opened for reading
	n := min(p.length, size-p.offset)
	if n <= 0 {
		return 0, errNotThere
	}
	if err := bring(fd, p.offset, n); err != nil {
		return 0, fmt.Errorf("read %d bytes at %d of %q of layer %s: %w", n, p.offset, f.Path, f.DiffID, err)
	}
	return n, nil
}

// bring a part of a file or device into the page cache. POSIX_FADV_WILLNEED, which is readahead(2) by another name
// (mm/fadvise.c), only starts the reads, so the last byte is waited for: otherwise all pieces would be queued at the
// device at once, and the reads of the container, or of whoever asks whether the disk is still alive, behind them.
func bring(fd int, offset, length int64) error {
	if err := unix.Fadvise(fd, offset, length, unix.FADV_WILLNEED); err != nil {
		return err
	}
	var last [1]byte
	for {
		_, err := unix.Pread(fd, last[:], offset+length-1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// lowestPriority is the last level of the class "best effort", ioprio_set(2). Not the class "idle": a container waits
// for the very pages that are being read ahead, and whatever else the node reads would come first.
const lowestPriority = 2<<13 | 7

// lowerPriority of the calling thread's reads. I/O schedulers that know no priorities ignore it, and so may anybody who
// cannot have it.
func lowerPriority() {
	const whoProcess = 1 // IOPRIO_WHO_PROCESS, include/uapi/linux/ioprio.h
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, lowestPriority)
}
