// Package pagecache says what of a file or block device is in the page cache.
package pagecache

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pages of the part of the file or block device that are in the page cache; offset and length are multiples of the size
// of a page. It asks mincore(2), which is older than cachestat(2) and brings nothing into the cache.
func Pages(path string, offset, length int64) (count int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("look into the page cache: %w", err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), offset, int(length), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("map %d bytes at %d of %s: %w", length, offset, path, err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(mapped)) }()
	resident := make([]byte, length/int64(os.Getpagesize()))
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&resident[0]))) //nolint:gosec // the kernel's interface
	if errno != 0 {
		return 0, fmt.Errorf("look into the page cache for %s: %w", path, errno)
	}
	for _, r := range resident {
		count += int(r & 1)
	}
	return count, nil
}
