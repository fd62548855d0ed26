package attrs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// readLink reads the target of a symbolic link in an open directory.
func readLink(dirFD int, name string) (string, error) {
	buf := make([]byte, MaxPathBytes+1)
	n, err := unix.Readlinkat(dirFD, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// readXattrs gives the listed xattrs of the last element of path itself, nil if there are none.
func readXattrs(path string) (map[string][]byte, error) {
	list, err := grow(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil // a file system without xattrs
	}
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var xattrs map[string][]byte
	for name := range strings.SplitSeq(string(list), "\x00") {
		if name == "" || !Listed(name) {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if err != nil {
			return nil, fmt.Errorf("get %s: %w", Escape(name), err)
		}
		if xattrs == nil {
			xattrs = make(map[string][]byte)
		}
		xattrs[name] = value
	}
	return xattrs, nil
}

// grow calls read with a small buffer first, since most answers are short, then with the largest that the kernel fills.
func grow(read func([]byte) (int, error)) ([]byte, error) {
	for _, size := range []int{256, MaxXattrValueBytes} {
		b := make([]byte, size)
		n, err := read(b)
		if err == nil {
			return slices.Clone(b[:n]), nil
		}
		if !errors.Is(err, unix.ERANGE) {
			return nil, err
		}
	}
	return nil, unix.ERANGE
}
