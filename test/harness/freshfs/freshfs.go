// Package freshfs gives measurements a file system that nothing was deleted on: ext4 does not hand out recently deleted
// inodes again for about half a minute, and unpacking a second time takes twice as long then.
package freshfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sizeBytes is apparent; the file is sparse.
const sizeBytes = 60 << 30

// Filesystem is an ext4 in a file on a loop device with direct I/O.
type Filesystem struct {
	file, device, dir string
}

// Mount makes a file system in a new file and mounts it on a new directory.
func Mount(ctx context.Context, file, dir string) (_ *Filesystem, err error) {
	f := &Filesystem{file: file, dir: dir}
	defer func() { //nolint:contextcheck // also after the end of ctx
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, sizeBytes), os.MkdirAll(dir, 0o711)); err != nil {
		return nil, fmt.Errorf("make image of file system: %w", err)
	}
	// Initialising tables lazily would go on in the background, during the measurement.
	if _, err := run(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", file); err != nil {
		return nil, err
	}
	device, err := run(ctx, "losetup", "--find", "--show", "--direct-io=on", file)
	if err != nil {
		return nil, err
	}
	f.device = strings.TrimSpace(device)
	// A device that somebody made read-only stays so when it gets another file.
	if _, err := run(ctx, "blockdev", "--setrw", f.device); err != nil {
		return nil, err
	}
	if err := unix.Mount(f.device, dir, "ext4", unix.MS_NOATIME, "noinit_itable"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", f.device, err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // user-namespaced runtimes have to pass through
		return nil, fmt.Errorf("open mount point: %w", err)
	}
	return f, nil
}

// Close unmounts and deletes the file system.
func (f *Filesystem) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if err := unix.Unmount(f.dir, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("unmount %s: %w", f.dir, err))
	}
	if f.device != "" {
		_, err := run(ctx, "losetup", "--detach", f.device)
		errs = append(errs, err)
		f.device = ""
	}
	if err := os.Remove(f.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
