package fsmount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// Writable mounts the file system at the device for writing without a place in the directory tree, for making a disk:
// the returned file is its root directory, reachable as /proc/self/fd/N, and closing it unmounts. However the process
// ends, no mount is left. It needs Linux 5.2 (fsopen).
func Writable(device string, fs FileSystem) (*os.File, error) {
	fd, err := mountDetached(device, fs)
	if err != nil {
		return nil, fmt.Errorf("mount %s device %s for writing: %w", fs, device, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

func mountDetached(device string, fs FileSystem) (_ int, err error) {
	ctx, err := unix.Fsopen(string(fs), unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENOSYS):
		return -1, fmt.Errorf("the kernel lacks fsopen, Linux 5.2 has it: %w: %w", err, blockdev.ErrUnsupported)
	case errors.Is(err, unix.ENODEV):
		return -1, fmt.Errorf("the kernel has no file system %s, load its module: %w: %w", fs, err, blockdev.ErrUnsupported)
	case err != nil:
		return -1, err
	}
	defer func() { err = errors.Join(err, unix.Close(ctx)) }()
	if err := unix.FsconfigSetString(ctx, "source", device); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, err
	}
	return unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
}
