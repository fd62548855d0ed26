package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
)

const (
	// loopTag marks our loop devices for whoever looks at them.
	loopTag = "berth verify"
	// cleanupTimeout is for unmounting and detaching after ctx has ended.
	cleanupTimeout = 30 * time.Second
)

// Disk verifies a layer disk at path: a file, a block device, or a directory where its file system is mounted. A file
// or device is proved by its header, then mounted read-only in a private directory; both the mount and the loop device
// are gone when Disk returns, also when ctx ends. It needs root. Errors are as those of Dir; a path that is neither
// file, block device nor directory is errdefs.ErrInvalidArgument.
func Disk(ctx context.Context, path string, opts Options) (*Report, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("verify layer disk: %w", err)
	}
	mode := info.Mode()
	switch {
	case mode.IsDir():
		return Dir(ctx, path, opts)
	case mode.IsRegular():
		return verifyFile(ctx, path, opts)
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		return verifyDevice(ctx, path, opts)
	}
	return nil, fmt.Errorf("%s is neither a file nor a block device nor a directory: %w", path, errdefs.ErrInvalidArgument)
}

// verifyFile uses a loop device: the kernel mounts EROFS straight from a file only since 6.12, and then keeps the pages
// of the file twice.
func verifyFile(ctx context.Context, path string, opts Options) (_ *Report, err error) {
	// Prove it before attaching a loop device: refusing what is not a layer disk must cost nothing and need no
	// privileges.
	if _, _, err := readIndex(path); err != nil {
		return nil, err
	}
	loop, err := device.AttachLoop(ctx, path, device.LoopOptions{ReadOnly: true, Tag: loopTag})
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, device.DetachLoop(ctx, loop))
	}()
	return verifyDevice(ctx, loop.Path, opts)
}

func verifyDevice(ctx context.Context, path string, opts Options) (_ *Report, err error) {
	ix, id, err := readIndex(path)
	if err != nil {
		return nil, err
	}
	if err := id.Check(opts.Want); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "berth-verify-")
	if err != nil {
		return nil, fmt.Errorf("make a directory to mount on: %w", err)
	}
	// os.Remove and not RemoveAll: if the file system is still mounted, nothing below it must be touched.
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := fsmount.Mount(path, dir, fsmount.FileSystem(ix.FileSystem)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fsmount.Unmount(dir)) }()

	report, err := verify(ctx, dir, ix, id, opts)
	if err != nil {
		return nil, err
	}
	// Whoever has only the mounted file system takes the index from there.
	switch _, mounted, err := layerdisk.ReadMountedIndex(dir); {
	case err != nil:
		report.Problems = append(report.Problems, err.Error())
	case mounted != id:
		report.Problems = append(report.Problems, fmt.Sprintf("%s is the index of another disk: %s", layerdisk.IndexPath, mounted))
	}
	return report, nil
}

func readIndex(path string) (*layerdisk.Index, layerdisk.Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, layerdisk.Identity{}, fmt.Errorf("open layer disk: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	ix, id, err := layerdisk.ReadIndex(f)
	if err != nil {
		return nil, layerdisk.Identity{}, fmt.Errorf("%s: %w", path, err)
	}
	return ix, id, nil
}
