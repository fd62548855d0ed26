package recorder

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/readahead/accesslist"
)

// maxOpened bounds what one recording remembers.
const maxOpened = 1 << 20

// opens is a source that notes which files are opened.
type opens struct {
	group *os.File // fanotify
	dev   *os.File
	size  int64
	// before are the offsets of pages of the block device that were cached when it began.
	before map[int64]bool

	reading sync.WaitGroup
	// what follows belongs to the reading goroutine until it has ended
	order []uint64
	seen  map[uint64]bool
	lost  int64
	err   error
}

var _ source = (*opens)(nil)

// startOpens leaves a goroutine behind until stop or close.
func startOpens(_ context.Context, t Target) (_ *opens, err error) {
	if _, err := t.numberOf(); err != nil {
		return nil, err
	}
	o := &opens{before: make(map[int64]bool), seen: make(map[uint64]bool)}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	if o.dev, err = os.Open(t.Device); err != nil {
		return nil, err
	}
	if o.size, err = o.dev.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("ask size of %s: %w", t.Device, err)
	}
	err = cachedRanges(o.dev, o.size, func(offset, length int64) {
		for at := offset; at < offset+length; at += pageSize() {
			o.before[at] = true
		}
	})
	if err != nil {
		return nil, err
	}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return nil, fmt.Errorf("fanotify: %w", err)
	}
	o.group = os.NewFile(uintptr(fd), "fanotify") //nolint:gosec // a file descriptor
	// On the disk's own file system: that is what containers open in the end, through the overlay (Linux 4.20).
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN|unix.FAN_ONDIR, unix.AT_FDCWD, t.MountPoint); err != nil {
		return nil, fmt.Errorf("watch what is opened on %s: %w", t.MountPoint, err)
	}
	group := o.group
	o.reading.Go(func() { o.read(group) })
	return o, nil
}

// read notes events until the group is closed or flushed.
func (o *opens) read(group *os.File) {
	buf := make([]byte, 64<<10)
	for {
		n, err := group.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
				o.err = fmt.Errorf("read fanotify: %w", err)
			}
			return
		}
		o.note(buf[:n])
	}
}

// note takes in events, each of which has an open file (fanotify(7)).
func (o *opens) note(b []byte) {
	const size = 24 // struct fanotify_event_metadata
	for len(b) >= size {
		length := binary.NativeEndian.Uint32(b)
		mask := binary.NativeEndian.Uint64(b[8:])
		fd := int(int32(binary.NativeEndian.Uint32(b[16:]))) //nolint:gosec // the kernel's int
		if length < size || uint64(length) > uint64(len(b)) {
			return
		}
		b = b[length:]
		if mask&unix.FAN_Q_OVERFLOW != 0 {
			o.lost++
		}
		if fd < 0 {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		_ = unix.Close(fd)
		if err != nil || o.seen[st.Ino] {
			continue
		}
		if len(o.order) == maxOpened {
			o.lost++
			continue
		}
		o.seen[st.Ino] = true
		o.order = append(o.order, st.Ino)
	}
}

func (o *opens) stop(ctx context.Context) (observed, error) {
	if err := o.flush(); err != nil {
		return observed{}, err
	}
	if err := errors.Join(ctx.Err(), o.err); err != nil {
		return observed{}, err
	}
	seen := observed{opened: o.order, lost: o.lost}
	var metadata parts
	err := cachedRanges(o.dev, o.size, func(offset, length int64) {
		for at := offset; at < offset+length; at += pageSize() {
			if !o.before[at] {
				metadata.add(0, at, pageSize())
			}
		}
	})
	for _, p := range metadata.list {
		seen.metadata = append(seen.metadata, accesslist.Range{Offset: p.offset, Length: min(p.length, o.size-p.offset)})
	}
	return seen, err
}

// flush waits until all events that there are have been read, and ends the reading.
func (o *opens) flush() error {
	// The reader may be waiting for more: it is told not to, and what is left is read here.
	if err := o.group.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return fmt.Errorf("end reading of fanotify: %w", err)
	}
	o.reading.Wait()
	buf := make([]byte, 64<<10)
	for o.err == nil {
		n, err := readNow(o.group, buf)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return fmt.Errorf("read fanotify: %w", err)
		}
		o.note(buf[:n])
	}
	return nil
}

func (o *opens) close() error {
	var errs []error
	if o.group != nil {
		if err := o.group.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	o.reading.Wait()
	if o.dev != nil {
		if err := o.dev.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
