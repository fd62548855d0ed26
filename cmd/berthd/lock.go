package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// lockFile lets a single process own what the file stands for, until it closes the file or ends. The file stays after
// the lock is released: removing it would let two others lock two different files of that name.
func lockFile(path, purpose string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", purpose, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("another berthd%s has %s: stop it first", holder(f), path)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", purpose, err), f.Close())
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", purpose, err), f.Close())
	}
	return f, nil
}

func writePID(f *os.File) error {
	_, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return err
}

// holder returns who wrote the file; it is only for a message.
func holder(f *os.File) string {
	var b [16]byte
	n, err := f.ReadAt(b[:], 0)
	if n == 0 && err != nil {
		return ""
	}
	return " (process " + strings.TrimSpace(string(b[:n])) + ")"
}
