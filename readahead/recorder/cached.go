package recorder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cacheWindow is how much of a file is asked about at first.
const cacheWindow = 64 << 20

// cachedRanges calls each with every run of pages of the file's bytes up to end that are in the page cache, in the
// order of the file. Where cachestat(2), of Linux 6.5, is missing mincore(2) answers, which does not see the pages of a
// block device that an ext4 has read in part.
func cachedRanges(f *os.File, end int64, each func(offset, length int64)) error {
	var at, length int64 // of the run so far
	add := func(offset, size int64) {
		if offset != at+length {
			if length > 0 {
				each(at, length)
			}
			at, length = offset, 0
		}
		length += size
	}
	for offset := int64(0); offset < end; offset += cacheWindow {
		size := (min(cacheWindow, end-offset) + pageSize() - 1) / pageSize() * pageSize()
		err := cachedWithin(f, offset, size, add)
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
			err = residentWithin(f, offset, size, add)
		}
		if err != nil {
			return fmt.Errorf("ask which pages of %s are cached: %w", f.Name(), err)
		}
	}
	if length > 0 {
		each(at, length)
	}
	return nil
}

// cachedWithin halves the window until each half is cached as a whole or not at all.
func cachedWithin(f *os.File, offset, size int64, add func(offset, size int64)) error {
	window := [2]uint64{uint64(offset), uint64(size)} //nolint:gosec // not negative
	var stat struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 }
	_, _, errno := unix.Syscall6(unix.SYS_CACHESTAT, f.Fd(), uintptr(unsafe.Pointer(&window)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0) //nolint:gosec // x/sys has no cachestat
	if errno != 0 {
		return errno
	}
	pages := size / pageSize()
	switch {
	case stat.cached == 0:
		return nil
	case stat.cached >= uint64(pages): //nolint:gosec // not negative
		add(offset, size)
		return nil
	}
	half := pages / 2 * pageSize()
	if err := cachedWithin(f, offset, half, add); err != nil {
		return err
	}
	return cachedWithin(f, offset+half, size-half, add)
}

// residentWithin asks mincore(2).
func residentWithin(f *os.File, offset, size int64, add func(offset, size int64)) error {
	mem, err := unix.Mmap(int(f.Fd()), offset, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	resident := make([]byte, size/pageSize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(size), uintptr(unsafe.Pointer(&resident[0]))) //nolint:gosec // x/sys has no mincore
	if err := unix.Munmap(mem); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	for i, r := range resident {
		if r&1 != 0 {
			add(offset+int64(i)*pageSize(), pageSize())
		}
	}
	return nil
}

// cachedParts are the cached pages of files, file by file.
func cachedParts(ctx context.Context, mountPoint string, inodes []uint64, names map[uint64]name) ([]part, error) {
	root, err := os.OpenRoot(mountPoint)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	var all parts
	for _, inode := range inodes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, ok := names[inode]
		if !ok || n.dir {
			all.add(inode, 0, maxPart) // to be counted as unknown, or to be found as a directory
			continue
		}
		f, err := root.Open(n.layer + "/" + n.path)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err == nil {
			err = cachedRanges(f, info.Size(), func(offset, length int64) { all.add(inode, offset, length) })
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return all.list, nil
}
