// Package fsmount is the one place that mounts and unmounts layer disks, and that reads what is mounted where.
//
// Which flags a layer disk gets, and why:
//
//   - ro, always. ext4 also noload: it would otherwise replay a journal onto the disk, or refuse a read-only device.
//   - not nodev and not nosuid. An overlay mount has its own flags and does not look at those of its lower directories
//     (whiteouts are 0/0 device nodes that overlay recognises by number; opening a device or executing a setuid file
//     checks the overlay's mount). But containerd mounts a single read-only layer as a bind mount, and a bind mount
//     takes the flags of where it comes from: with nodev or nosuid a one-layer image would behave otherwise than from
//     the local disk. What the flags would protect against, users of the node reaching setuid files of images by path,
//     is prevented as on the local disk: the directory above the mounts is 0700.
//   - no noexec, for the same reason.
package fsmount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// FileSystem is one that a layer disk can have.
type FileSystem string

// File systems of layer disks, as mount(2) and mountinfo call them.
const (
	EROFS FileSystem = "erofs"
	Ext4  FileSystem = "ext4"
)

func (fs FileSystem) data() (string, error) {
	switch fs {
	case EROFS:
		return "", nil
	case Ext4:
		return "noload", nil
	}
	return "", fmt.Errorf("file system %q is none of %s, %s: %w", string(fs), EROFS, Ext4, blockdev.ErrInvalid)
}

// Mounted is one mount, as this process's mount namespace has it.
type Mounted struct {
	// ID is unique among the mounts that exist at one time.
	ID int
	// Target is the absolute path, without symbolic links.
	Target string
	// Device is the number of the mounted device, comparable to device.Number.
	Device uint64
	// Source is what the mounter named; it proves nothing.
	Source   string
	Type     string
	ReadOnly bool
	parent   int
}

// Mount mounts the layer disk at the device read-only on the directory target. A file system that the kernel does not
// have is ErrUnsupported, a damaged one the kernel's error (EUCLEAN, EINVAL or EIO), a target or device that is missing
// ErrNotFound, a device that others have mounted writable ErrInUse. What is mounted on target already is mounted over:
// ask At first.
func Mount(device, target string, fs FileSystem) error {
	if err := mount(device, target, fs); err != nil {
		return fmt.Errorf("mount %s device %s on %s: %w", fs, device, target, err)
	}
	return nil
}

func mount(device, target string, fs FileSystem) error {
	data, err := fs.data()
	if err != nil {
		return err
	}
	if _, err := clean(target); err != nil {
		return err
	}
	err = unix.Mount(device, target, string(fs), unix.MS_RDONLY, data)
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("the kernel has no file system %s, load its module: %w: %w", fs, err, blockdev.ErrUnsupported)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", err, blockdev.ErrInUse)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %w", err, blockdev.ErrNotFound)
	}
	return err
}

// Unmount unmounts the topmost mount on target. Nothing mounted there is no error; a mount in which a process works or
// has files open is ErrInUse. Overlay mounts above it do not keep it busy, they keep the device busy: see device.InUse.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EINVAL):
		// umount(2): target is not a mount point. It is also the answer for a mount that is locked here, so look.
		mounts, atErr := At(target)
		if atErr == nil && len(mounts) == 0 {
			return nil
		}
		err = errors.Join(err, atErr)
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: %w", err, blockdev.ErrInUse)
	}
	return fmt.Errorf("unmount %s: %w", target, err)
}

// At lists what is mounted on exactly the directory target, the topmost mount, which is the one that is seen, last;
// none if nothing is. It does not touch target itself, so that it works on a mount whose device has gone.
func At(target string) ([]Mounted, error) {
	mounts, err := list(target, func(mountPoint, target string) bool { return mountPoint == target })
	if err != nil {
		return nil, fmt.Errorf("list mounts on %s: %w", target, err)
	}
	return stack(mounts), nil
}

// stack orders mounts on one target: each is the parent of the one above it. IDs are used again by the kernel, so their
// order says nothing.
func stack(mounts []Mounted) []Mounted {
	above := make(map[int]Mounted, len(mounts))
	ids := make(map[int]bool, len(mounts))
	for _, m := range mounts {
		above[m.parent] = m
		ids[m.ID] = true
	}
	ordered := make([]Mounted, 0, len(mounts))
	for _, m := range mounts {
		if ids[m.parent] {
			continue
		}
		for next, ok := m, true; ok && len(ordered) < len(mounts); next, ok = above[next.ID] {
			ordered = append(ordered, next)
		}
	}
	return ordered
}

// Below lists what is mounted on and below the directory dir, in no particular order.
func Below(dir string) ([]Mounted, error) {
	mounts, err := list(dir, func(mountPoint, dir string) bool {
		return mountPoint == dir || strings.HasPrefix(mountPoint, strings.TrimSuffix(dir, "/")+"/")
	})
	if err != nil {
		return nil, fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	return mounts, nil
}

func list(dir string, match func(mountPoint, dir string) bool) ([]Mounted, error) {
	dir, err := resolveParent(dir)
	if err != nil {
		return nil, err
	}
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return !match(info.Mountpoint, dir), false
	})
	if err != nil {
		return nil, err
	}
	mounts := make([]Mounted, 0, len(infos))
	for _, info := range infos {
		mounts = append(mounts, Mounted{
			ID:     info.ID,
			Target: info.Mountpoint,
			Device: unix.Mkdev(uint32(info.Major), uint32(info.Minor)), //nolint:gosec // the kernel's numbers are 32 bits
			Source: info.Source,
			Type:   info.FSType,
			// A mount is read-only if either the mount or the whole file system is.
			ReadOnly: hasOption(info.Options, "ro") || hasOption(info.VFSOptions, "ro"),
			parent:   info.Parent,
		})
	}
	return mounts, nil
}

func hasOption(options, want string) bool {
	for option := range strings.SplitSeq(options, ",") {
		if option == want {
			return true
		}
	}
	return false
}

// resolveParent makes the path comparable to mountinfo without a system call on the last element, which may be the root
// of a dead file system.
func resolveParent(path string) (string, error) {
	path, err := clean(path)
	if err != nil || path == "/" {
		return path, err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return path, nil // nothing can be mounted there
	}
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(path)), nil
}

func clean(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("path %q is not absolute: %w", path, blockdev.ErrInvalid)
	}
	return filepath.Clean(path), nil
}
