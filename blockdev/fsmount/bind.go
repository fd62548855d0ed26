package fsmount

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
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

// Bound lists the targets of BindDevice at which the block device with that number, whose file is at device, appears.
func Bound(device string, number uint64) ([]string, error) {
	root := "/" + filepath.Base(device)
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) { return info.Root != root, false })
	if err != nil {
		return nil, fmt.Errorf("list mounts of device %s: %w", device, err)
	}
	var targets []string
	for _, info := range infos {
		var st unix.Stat_t
		if err := unix.Lstat(info.Mountpoint, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == number {
			targets = append(targets, info.Mountpoint)
		}
	}
	return targets, nil
}
