package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

const (
	loopControl = "/dev/loop-control"
	sysBlock    = "/sys/block"
	// loNameSize is the kernel's LO_NAME_SIZE (include/uapi/linux/loop.h), the last byte being NUL.
	loNameSize = 64
)

// Loop is a loop device that stands for a file.
type Loop struct {
	// Path of the device file.
	Path string
	// Dev and Inode are those of the backing file.
	Dev, Inode uint64
	// Tag is what AttachLoop was told; the kernel keeps it as long as the device. A device attached by others has
	// another text there, mostly the file's name.
	Tag string
	// ReadOnly says that the kernel refuses writes to the device now, BackingReadOnly that it cannot be made to take
	// them.
	ReadOnly, BackingReadOnly bool
	// DirectIO says that reads bypass the page cache of the backing file, which would hold all data a second time.
	DirectIO bool
	// Whole says that the device shows the whole file, without offset or limit.
	Whole bool
}

// LoopOptions of one loop device.
type LoopOptions struct {
	ReadOnly bool
	// Tag of up to 63 bytes says whose device it is, see Loop.Tag.
	Tag string
}

// AttachLoop makes a new loop device for the file, or for a block device if it is to be read-only, and returns it, with
// direct I/O if the file's file system can do that. It does not look for one that is there already: see FindLoops.
//
// The device does not clear itself on last close (no LO_FLAGS_AUTOCLEAR): it has to live from here until somebody
// mounts it, to survive our process, and to leave only when it is told to, so that a step of a journal can be repeated.
func AttachLoop(ctx context.Context, file string, opts LoopOptions) (Loop, error) {
	loop, dev, err := attachLoop(ctx, file, opts, 0)
	if err != nil {
		return Loop{}, fmt.Errorf("attach loop device for %s: %w", file, err)
	}
	_ = dev.Close() // nothing was written
	return loop, nil
}

// AttachLoopWhileUsed makes a loop device as AttachLoop does, but the kernel detaches it as soon as nobody uses it any
// more (LO_FLAGS_AUTOCLEAR). The returned file is a user of it, mounts are others: a process that is killed leaves no
// device behind.
func AttachLoopWhileUsed(ctx context.Context, file string, opts LoopOptions) (Loop, *os.File, error) {
	loop, dev, err := attachLoop(ctx, file, opts, unix.LO_FLAGS_AUTOCLEAR)
	if err != nil {
		return Loop{}, nil, fmt.Errorf("attach loop device for %s: %w", file, err)
	}
	return loop, dev, nil
}

// attachLoop returns the open device too.
func attachLoop(ctx context.Context, file string, opts LoopOptions, flags uint32) (Loop, *os.File, error) {
	if len(opts.Tag) >= loNameSize {
		return Loop{}, nil, fmt.Errorf("tag of %d bytes, at most %d: %w", len(opts.Tag), loNameSize-1, blockdev.ErrInvalid)
	}
	backing, err := openBacking(file, opts.ReadOnly)
	if err != nil {
		return Loop{}, nil, err
	}
	defer backing.Close() //nolint:errcheck // the kernel keeps its own reference, nothing was written here
	control, err := os.OpenFile(loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return Loop{}, nil, fmt.Errorf("open loop control: %w", notFound(err))
	}
	defer control.Close() //nolint:errcheck // nothing was written

	wait := newPoll()
	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return Loop{}, nil, fmt.Errorf("get a free loop device: %w", limit(err))
		}
		loop, dev, err := configure(number, backing, opts, flags)
		if err == nil {
			return loop, dev, nil
		}
		// Somebody else took or removed the free number between the two calls; that is how the interface is, see
		// loop(4).
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return Loop{}, nil, err
		}
		if err := wait.next(ctx); err != nil {
			return Loop{}, nil, fmt.Errorf("wait for a free loop device: %w", err)
		}
	}
}

// openBacking opens with O_DIRECT where that is possible: the loop driver then takes over both direct I/O and the block
// size of the device below (drivers/block/loop.c, loop_configure).
func openBacking(file string, readonly bool) (*os.File, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK
	if readonly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	}
	f, err := os.OpenFile(file, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(file, flags, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open backing file: %w", notFound(err))
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() && (st.Mode().Type() != os.ModeDevice || !readonly) {
		err = fmt.Errorf("backing file is neither a regular file nor a block device to read from, but %s: %w", st.Mode().Type(), blockdev.ErrInvalid)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func configure(number int, backing *os.File, opts LoopOptions, flags uint32) (_ Loop, _ *os.File, err error) {
	path := fmt.Sprintf("/dev/loop%d", number)
	mode := unix.O_RDWR
	if opts.ReadOnly {
		mode = unix.O_RDONLY
	}
	dev, err := openBlock(path, mode)
	if err != nil {
		return Loop{}, nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd())} //nolint:gosec // a file descriptor fits
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO | flags
	if opts.ReadOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:loNameSize-1], opts.Tag)
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &config); err != nil {
		return Loop{}, nil, errors.Join(fmt.Errorf("configure %s: %w", path, err), dev.Close())
	}
	loop, err := configured(dev, path, opts)
	if err != nil {
		return Loop{}, nil, errors.Join(err, unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0), dev.Close())
	}
	return loop, dev, nil
}

// configured makes sure that the new device is as it was asked for.
func configured(dev *os.File, path string, opts LoopOptions) (Loop, error) {
	if !opts.ReadOnly {
		// BLKROSET on a loop device outlives what was attached to it: LOOP_CONFIGURE sets the disk's flag and leaves
		// that of the block device alone (seen on 6.18; block/ioctl.c, drivers/block/loop.c). The device is ours alone
		// still.
		if _, err := setReadOnly(dev, false); err != nil {
			return Loop{}, err
		}
	}
	loop, ok, err := status(dev)
	if err != nil {
		return Loop{}, err
	}
	if !ok {
		return Loop{}, fmt.Errorf("%s was detached at once: %w", path, blockdev.ErrNotFound)
	}
	if opts.ReadOnly && !loop.ReadOnly {
		return Loop{}, fmt.Errorf("%s is writable although read-only was asked for: %w", path, blockdev.ErrUnsupported)
	}
	return loop, nil
}

// limit adds the class to errors that mean there can be no further loop device.
func limit(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", err, blockdev.ErrAttachLimit)
	}
	return err
}

// FindLoops lists the loop devices that stand for the file, whoever made them, in the order of their names.
func FindLoops(file string) ([]Loop, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", file, notFound(err))
	}
	return loops(func(name string) bool {
		var other unix.Stat_t
		// A name that cannot be looked up may be that of our file in another mount namespace.
		return unix.Stat(name, &other) != nil || other.Dev == st.Dev && other.Ino == st.Ino
	}, func(l Loop) bool { return l.Dev == st.Dev && l.Inode == st.Ino })
}

// TaggedLoops lists the loop devices that were attached with the tag, also those whose file was deleted since.
func TaggedLoops(tag string) ([]Loop, error) {
	return loops(func(string) bool { return true }, func(l Loop) bool { return l.Tag == tag })
}

// LoopAt is the loop device at path; ok is false if no file is attached to it.
func LoopAt(path string) (loop Loop, ok bool, err error) {
	dev, err := openBlock(path, unix.O_RDONLY)
	if err != nil {
		return Loop{}, false, err
	}
	defer dev.Close() //nolint:errcheck // nothing was written
	return status(dev)
}

// loops asks the kernel only about devices whose backing file name may be meant: opening a device delays its clearing
// by others for that moment. A device on storage that does not answer is left out.
func loops(mayBe func(backingName string) bool, match func(Loop) bool) ([]Loop, error) {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var found []Loop
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "loop") {
			continue
		}
		backing, err := os.ReadFile(filepath.Join(sysBlock, e.Name(), "loop", "backing_file"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // not attached, or detached just now
		}
		if err != nil {
			return nil, fmt.Errorf("list loop devices: %w", err)
		}
		if !mayBe(strings.TrimSuffix(string(backing), "\n")) {
			continue
		}
		path := filepath.Join("/dev", e.Name())
		loop, ok, err := LoopAt(path)
		if errors.Is(err, blockdev.ErrNotFound) || unanswered(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list loop devices: %w", err)
		}
		if ok && match(loop) {
			found = append(found, loop)
		}
	}
	return found, nil
}

// unanswered says that the kernel could not tell of a loop device because the file system of its file does not answer,
// such as one of a FUSE process that died or of a server that is away. It is nobody's concern who looks for another
// file.
func unanswered(err error) bool {
	for _, e := range []error{unix.ENOTCONN, unix.ESTALE, unix.EIO, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func status(dev *os.File) (Loop, bool, error) {
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return Loop{}, false, nil
	}
	if err != nil {
		return Loop{}, false, fmt.Errorf("ask status of %s: %w", dev.Name(), err)
	}
	ro, err := readOnly(dev)
	if err != nil {
		return Loop{}, false, err
	}
	return Loop{
		Path:     dev.Name(),
		Dev:      info.Device,
		Inode:    info.Inode,
		Tag:      unix.ByteSliceToString(info.File_name[:]),
		ReadOnly: ro, BackingReadOnly: info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		DirectIO: info.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		Whole:    info.Offset == 0 && info.Sizelimit == 0,
	}, true, nil
}
