package fsmount

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// BindDevice makes the block device file at device appear at target, an existing file, by a bind mount: unlike a device
// node made there it does not outlive a reboot, after which its number may be another device's. Unmount undoes it.
func BindDevice(device, target string) error {
	_, err := clean(target)
	if err == nil {
		err = unix.Mount(device, target, "", unix.MS_BIND, "")
	}
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("%w: %w", err, blockdev.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("bind device %s to %s: %w", device, target, err)
	}
	return nil
}
