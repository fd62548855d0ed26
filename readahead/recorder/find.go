package recorder

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/readahead/accesslist"
)

// name is what an inode is called.
type name struct {
	diffID digest.Digest
	layer  string // its directory
	path   string // below layer
	dir    bool
	// extents of a directory, which the block device has to be read for.
	extents []extent
}

// extent says where a piece of a file lies on the device, in bytes.
type extent struct{ logical, physical, length int64 }

// blocks is where a part of a directory lies.
func (n name) blocks(p part) (ranges []accesslist.Range) {
	for _, e := range n.extents {
		from, to := max(p.offset, e.logical), min(p.offset+p.length, e.logical+e.length)
		if from < to {
			ranges = append(ranges, accesslist.Range{Offset: e.physical + from - e.logical, Length: to - from})
		}
	}
	return ranges
}

// finder walks directories until it knows the names of all inodes that are wanted.
type finder struct {
	ctx    context.Context //nolint:containedctx // lives as long as one call of find
	wanted map[uint64]bool
	names  map[uint64]name
	buf    []byte
	path   []byte
	layer  Layer
}

// find gives the names of the inodes that were seen. It reads directories only, no inodes: the kernel gives an inode's
// number and type with its name. Of hard links the first name is taken, directory by directory in the order of names.
func (t Target) find(ctx context.Context, seen observed) (map[uint64]name, error) {
	f := &finder{ctx: ctx, wanted: make(map[uint64]bool), names: make(map[uint64]name), buf: make([]byte, 256<<10)}
	for _, p := range seen.parts {
		f.wanted[p.inode] = true
	}
	for _, inode := range seen.opened {
		f.wanted[inode] = true
	}
	root, err := unix.Open(t.MountPoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", t.MountPoint, err)
	}
	defer unix.Close(root) //nolint:errcheck // nothing was written
	// The directories above the layers belong to all of them.
	for _, path := range []string{".", "l"} {
		if err := f.above(root, path); err != nil {
			return nil, err
		}
	}
	for _, l := range t.Layers {
		if len(f.wanted) == 0 {
			break
		}
		f.layer, f.path = l, f.path[:0]
		if err := f.enter(root, l.Path); err != nil {
			return nil, fmt.Errorf("%s: %w", l.Path, err)
		}
	}
	return f.names, nil
}

// resolveHow keeps a walk on the disk.
const resolveHow = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV

func openDir(at int, path string) (int, error) {
	return unix.Openat2(at, path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOATIME, Resolve: resolveHow})
}

func (f *finder) above(root int, path string) error {
	fd, err := openDir(root, path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	return f.directory(fd)
}

// directory notes the open directory if it is wanted.
func (f *finder) directory(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if !f.wanted[st.Ino] {
		return nil
	}
	delete(f.wanted, st.Ino)
	extents, err := fiemap(fd)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("find out where a directory lies: %w", err)
	}
	f.names[st.Ino] = name{dir: true, extents: extents}
	return nil
}

// enter looks at a directory below at and at all below it.
func (f *finder) enter(at int, path string) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	fd, err := openDir(at, path)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := f.directory(fd); err != nil {
		return err
	}
	dirs, err := f.entries(fd)
	if err != nil {
		return err
	}
	length := len(f.path)
	for _, dir := range dirs {
		if len(f.wanted) == 0 {
			return nil
		}
		if length > 0 {
			f.path = append(f.path, '/')
		}
		f.path = append(f.path, dir...)
		if err := f.enter(fd, dir); err != nil {
			return fmt.Errorf("%q: %w", f.path, err)
		}
		f.path = f.path[:length]
	}
	return nil
}

// entries notes the files of a directory that are wanted, and gives its directories by name.
func (f *finder) entries(fd int) (dirs []string, err error) {
	files := make(map[string]uint64)
	for {
		n, err := unix.Getdents(fd, f.buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		dirs = f.dirents(f.buf[:n], dirs, files)
	}
	for _, base := range slices.Sorted(maps.Keys(files)) {
		inode, path := files[base], base
		if !f.wanted[inode] {
			continue // another name of it
		}
		if len(f.path) > 0 {
			path = string(f.path) + "/" + base
		}
		f.names[inode] = name{diffID: f.layer.DiffID, layer: f.layer.Path, path: path}
		delete(f.wanted, inode)
	}
	slices.Sort(dirs)
	return dirs, nil
}

// dirents reads what getdents64(2) gives.
func (f *finder) dirents(b []byte, dirs []string, files map[string]uint64) []string {
	const (
		header = 19 // struct linux_dirent64: inode 8, offset 8, length 2, type 1
		dirent = 16 // where the length is
	)
	for len(b) > header {
		inode, length, kind := binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint16(b[dirent:]), b[header-1]
		base, _, _ := bytes.Cut(b[header:length], []byte{0})
		b = b[length:]
		switch {
		case string(base) == "." || string(base) == "..":
		case kind == unix.DT_DIR:
			dirs = append(dirs, string(base))
		case kind == unix.DT_REG && f.wanted[inode]:
			files[string(base)] = inode
		}
	}
	return dirs
}

// fiemapHeader and fiemapExtent are of linux/fiemap.h.
type fiemapHeader struct {
	start, length                        uint64
	flags, mapped, extentCount, reserved uint32
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

const (
	fsIocFiemap = 0xC020660B // _IOWR('f', 11, struct fiemap)
	// maxExtents of a directory that are asked for; ours have one, and an inline end.
	maxExtents = 64
)

// fiemap asks where an open directory lies on the device.
func fiemap(fd int) ([]extent, error) {
	var request struct {
		fiemapHeader
		extents [maxExtents]fiemapExtent
	}
	request.length, request.extentCount = ^uint64(0)>>1, maxExtents
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocFiemap, uintptr(unsafe.Pointer(&request))); errno != 0 { //nolint:gosec // x/sys has no FIEMAP
		return nil, os.NewSyscallError("FIEMAP", errno)
	}
	var list []extent
	for _, e := range request.extents[:min(request.mapped, maxExtents)] {
		if e.physical < 1<<62 && e.logical < 1<<62 && e.length < 1<<62 {
			list = append(list, extent{int64(e.logical), int64(e.physical), int64(e.length)}) //nolint:gosec // checked
		}
	}
	return list, nil
}
