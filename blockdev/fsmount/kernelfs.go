package fsmount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// Tracefs gives the kernel's tracing file system without mounting it anywhere: it is there for who has the returned
// root, and goes with it, also with a process that is killed. A kernel without it is ErrUnsupported; one that keeps it
// from everybody (lockdown) refuses what is opened in it.
func Tracefs() (*os.Root, error) {
	root, err := detached("tracefs")
	if err != nil {
		return nil, fmt.Errorf("reach tracefs: %w", err)
	}
	return root, nil
}

// detached makes a mount that has no place (fsmount(2), Linux 5.2).
func detached(fsType string) (*os.Root, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOSYS) {
		return nil, fmt.Errorf("the kernel has none: %w: %w", err, blockdev.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs) //nolint:errcheck // nothing was written
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir) //nolint:errcheck // nothing was written
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir))
}
