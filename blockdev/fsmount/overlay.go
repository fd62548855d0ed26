package fsmount

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// Overlay is what one overlay mount is made of: absolute paths.
type Overlay struct {
	// Lower directories, the lowest first.
	Lower []string
	// Upper and Work directories, empty and on one file system.
	Upper, Work string
}

// MountOverlay mounts an overlay on the directory target. Lower directories beyond what one page holds need Linux 6.5.
func MountOverlay(o Overlay, target string) error {
	if err := mountOverlay(o, target); err != nil {
		return fmt.Errorf("mount overlay of %d layers on %s: %w", len(o.Lower), target, err)
	}
	return nil
}

func mountOverlay(o Overlay, target string) error {
	if len(o.Lower) == 0 {
		return fmt.Errorf("no lower directory: %w", blockdev.ErrInvalid)
	}
	for _, path := range append([]string{o.Upper, o.Work, target}, o.Lower...) {
		if _, err := clean(path); err != nil {
			return err
		}
		if strings.ContainsAny(path, `,:\`) {
			return fmt.Errorf("path %q has ',', ':' or '\\', which separate mount options: %w", path, blockdev.ErrInvalid)
		}
	}
	err := configureOverlay(o, target)
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	// "lowerdir+" is not known before Linux 6.5.
	var top []string
	for _, dir := range o.Lower {
		top = append([]string{dir}, top...)
	}
	options := "lowerdir=" + strings.Join(top, ":") + ",upperdir=" + o.Upper + ",workdir=" + o.Work
	return unix.Mount("overlay", target, "overlay", 0, options)
}

// configureOverlay names each directory by itself (fs/overlayfs/params.c, lowerdir+), the topmost lower one first.
func configureOverlay(o Overlay, target string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs) //nolint:errcheck // nothing was written
	for i := len(o.Lower) - 1; i >= 0; i-- {
		if err := unix.FsconfigSetString(fs, "lowerdir+", o.Lower[i]); err != nil {
			return err
		}
	}
	for _, option := range [][2]string{{"source", "overlay"}, {"upperdir", o.Upper}, {"workdir", o.Work}} {
		if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mount) //nolint:errcheck // nothing was written
	return unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
