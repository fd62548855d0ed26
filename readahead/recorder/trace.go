package recorder

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/readahead/accesslist"
)

const (
	// drainEvery is how often the kernel's buffer is emptied.
	drainEvery = 100 * time.Millisecond
	// maxEvents bounds the memory of a recording to about 200 MB. A start that reads more has its first part recorded.
	maxEvents = 2 << 20
)

// trace is a source that has the kernel write down pages.
type trace struct {
	in *instance
	// disk is the file system's device number as events have it, bdevInode the inode of the block device, which is that
	// number too, and bdev the file system of all block devices.
	disk      string
	bdevInode uint64
	bdev      string
	// self says of threads whether they are this process's; nil if that does not matter.
	self map[int]bool

	stopDrain context.CancelFunc
	drained   sync.WaitGroup

	// what follows belongs to the draining goroutine until it has ended
	rest   []byte // a line of which the end is still to come
	events []event
	lost   int64
	err    error
}

var _ source = (*trace)(nil)

// startTrace leaves a goroutine behind until stop or close.
func startTrace(ctx context.Context, t Target) (*trace, error) {
	number, err := t.numberOf()
	if err != nil {
		return nil, err
	}
	in, err := newInstance(number)
	if err != nil {
		return nil, err
	}
	tr := &trace{in: in, disk: fmt.Sprintf("%d:%d", number>>20, number&(1<<20-1)), bdevInode: number}
	if err := tr.calibrate(t.Device); err != nil {
		return nil, errors.Join(err, in.close())
	}
	if t.NotSelf {
		tr.self = make(map[int]bool)
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	tr.stopDrain = cancel
	tr.drained.Go(func() { tr.drain(work) })
	return tr, nil
}

// calibrate reads a page of the block device itself, and learns from the event, which proves that tracing works, in
// which file system the kernel has block devices: an inode of that number may exist in others too.
func (tr *trace) calibrate(path string) error {
	dev, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dev.Close()
	// Or the kernel would read on behind the page.
	if err := unix.Fadvise(int(dev.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return fmt.Errorf("advise %s: %w", path, err)
	}
	size, err := dev.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("ask size of %s: %w", path, err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A page that is cached is not traced. The first ones, and those of the metadata, mostly are.
	const tries = 64
	for i := range int64(tries) {
		at := size / tries * i / pageSize() * pageSize()
		if _, err := dev.ReadAt(make([]byte, 1), at); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if tr.empty(); tr.calibrated(at) || tr.err != nil {
			return tr.err
		}
	}
	return fmt.Errorf("the kernel does not trace the reading of %s: %w", path, unix.ENOSYS)
}

// calibrated takes the event of the page that this thread has just read at offset at, and forgets those before it.
func (tr *trace) calibrated(at int64) bool {
	for i, e := range tr.events {
		if e.inode == tr.bdevInode && e.dev != tr.disk && e.offset <= at && at < e.offset+e.length && e.pid == unix.Gettid() {
			tr.bdev = e.dev
			tr.events = slices.Delete(tr.events, 0, i+1)
			return true
		}
	}
	return false
}

// drain empties the kernel's buffer until ctx ends.
func (tr *trace) drain(ctx context.Context) {
	ticker := time.NewTicker(drainEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			tr.empty()
		}
	}
}

// empty reads all that is in the kernel's buffer.
func (tr *trace) empty() {
	buf := make([]byte, 64<<10)
	for tr.err == nil {
		n, err := readNow(tr.in.pipe, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return
		case err != nil:
			tr.err = fmt.Errorf("read trace: %w", err)
			return
		}
		tr.rest = append(tr.rest, buf[:n]...)
		for {
			line, rest, whole := bytes.Cut(tr.rest, []byte("\n"))
			if !whole {
				break
			}
			tr.line(string(line))
			tr.rest = rest
		}
		tr.rest = bytes.Clone(tr.rest)
	}
}

// readNow is a read that does not wait for more, as os.File's does, of a file that was opened with O_NONBLOCK.
func readNow(f *os.File, buf []byte) (n int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if err := conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) }); err != nil {
		return 0, err
	}
	return n, err
}

func (tr *trace) line(line string) {
	e, ok := parseEvent(line, pageSize())
	switch {
	case !ok:
		tr.lost += parseLost(line)
	case len(tr.events) == maxEvents:
		tr.lost++
	case tr.isSelf(e.pid):
	case tr.bdev == "" || e.dev == tr.disk || e.dev == tr.bdev && e.inode == tr.bdevInode:
		tr.events = append(tr.events, e)
	}
}

// isSelf looks while the thread likely lives: its number may be another's later.
func (tr *trace) isSelf(thread int) bool {
	if tr.self == nil {
		return false
	}
	self, known := tr.self[thread]
	if !known {
		_, err := os.Stat("/proc/self/task/" + strconv.Itoa(thread))
		self = err == nil
		tr.self[thread] = self
	}
	return self
}

func (tr *trace) stop(ctx context.Context) (observed, error) {
	if err := tr.in.write("tracing_on", "0"); err != nil {
		return observed{}, err
	}
	tr.stopDrain()
	tr.drained.Wait()
	tr.empty()
	if err := cmp.Or(ctx.Err(), tr.err); err != nil {
		return observed{}, err
	}
	// Each CPU has a buffer of its own.
	slices.SortStableFunc(tr.events, func(a, b event) int { return cmp.Compare(a.micros, b.micros) })
	var files, metadata parts
	for _, e := range tr.events {
		if e.dev == tr.disk {
			files.add(e.inode, e.offset, e.length)
		} else {
			metadata.add(e.inode, e.offset, e.length)
		}
	}
	seen := observed{parts: files.list, lost: tr.lost + tr.dropped()}
	for _, p := range metadata.list {
		seen.metadata = append(seen.metadata, accesslist.Range{Offset: p.offset, Length: p.length})
	}
	return seen, nil
}

// dropped is how many events the kernel had no room for.
func (tr *trace) dropped() (lost int64) {
	for cpu := range runtime.NumCPU() {
		data, err := tr.in.root.ReadFile(fmt.Sprintf("%s/per_cpu/cpu%d/stats", tr.in.name, cpu))
		if err != nil {
			continue // CPUs need not be numbered without gaps
		}
		for line := range bytes.Lines(data) {
			if count, found := bytes.CutPrefix(bytes.TrimSpace(line), []byte("dropped events: ")); found {
				n, _ := strconv.ParseInt(string(count), 10, 63)
				lost += n
			}
		}
	}
	return lost
}

func (tr *trace) close() error {
	tr.stopDrain()
	tr.drained.Wait()
	return tr.in.close()
}
