package loopdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
)

// A volume snapshot and a volume made from one begin with the bytes of another file. File systems that can share blocks
// between files (xfs, btrfs) do that in no time. Elsewhere both are one file with two names, as long as nobody writes:
// a file that has several names is never written to. Whoever attaches such a volume for writing waits for a copy of its
// own.
//
// The number of names is all that says whether a file is shared; there is no record that could be wrong. It is read
// under the key of the volume, and a file with one name can get another only under that key.

const (
	// sharedMode says to people what the driver sees to: nobody writes to this file.
	sharedMode = 0o400
	ownMode    = 0o600
	// copyChunk is how much is copied between looks at the context.
	copyChunk = 16 << 20
)

// duplicate puts at dst, durably, what the file src holds, then zeros up to sizeBytes, which is not less than it has.
// The file may be src itself under a second name: see own.
func (d *files) duplicate(ctx context.Context, dst, src string, sizeBytes int64) error {
	done, err := reflink(dst, src, sizeBytes)
	if err == nil && !done {
		done, err = d.share(dst, src, sizeBytes)
	}
	if err == nil && !done {
		err = copyFile(ctx, dst, src, sizeBytes)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	return nil
}

// reflink makes dst with the blocks of src, and is false if the file system cannot do that.
func reflink(dst, src string, sizeBytes int64) (bool, error) {
	err := fillFrom(dst, src, func(to, from *os.File) error {
		if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
			return err
		}
		return to.Truncate(sizeBytes)
	})
	// ioctl_ficlone(2): what file systems without it answer, and what it answers for files on two of them.
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return err == nil, err
}

// share makes dst a second name of src, and is false if the two cannot be one file: of another size, on another file
// system, one with too many names or without such names, or one that somebody may be writing to.
func (d *files) share(dst, src string, sizeBytes int64) (_ bool, err error) {
	file, err := os.Open(src)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil || info.Size() != sizeBytes {
		return false, err
	}
	loops, err := device.FindLoops(src)
	if err != nil {
		return false, err
	}
	for _, loop := range loops {
		if !loop.BackingReadOnly {
			return false, nil
		}
	}
	// What was written to it may not have reached the disk yet.
	if err := file.Sync(); err != nil {
		return false, err
	}
	if err := file.Chmod(sharedMode); err != nil {
		return false, err
	}
	d.crash("frozen")
	err = os.Link(src, dst)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

// own gives a volume that is not attached, and is to be written to, a file that nobody else has: its own already, or a
// copy, which takes the place of the shared one when it is whole and on the disk. The caller holds the volume's key.
func (d *files) own(ctx context.Context, volumeID string) error {
	path := d.path(volumesDir, volumeID, diskFile)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	// A loop device may outlive the name that it was attached by.
	loops, err := device.FindLoops(path)
	if err != nil {
		return err
	}
	if st.Nlink == 1 && len(loops) == 0 {
		return os.Chmod(path, ownMode)
	}
	if err := d.replace(ctx, volumeID, path, st.Size); err != nil {
		return fmt.Errorf("others use its file, copy it for writing: %w", full(err))
	}
	return nil
}

// replace puts a copy in the place of the volume's file. A crash leaves the one or the other there; what it leaves
// besides, the next Open deletes.
func (d *files) replace(ctx context.Context, volumeID, path string, sizeBytes int64) (err error) {
	temp, err := os.MkdirTemp(filepath.Join(d.dir, volumesDir), tempPrefix+"new-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	d.crash("begun")
	fresh := filepath.Join(temp, diskFile)
	done, err := reflink(fresh, path, sizeBytes)
	if err == nil && !done {
		err = copyFile(ctx, fresh, path, sizeBytes)
	}
	if err != nil {
		return err
	}
	d.crash("copied")
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	d.crash("replaced")
	if err := syncDir(d.path(volumesDir, volumeID)); err != nil {
		return err
	}
	d.crash("synced")
	return nil
}

// fillFrom makes dst with what fill takes from src.
func fillFrom(dst, src string, fill func(to, from *os.File) error) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // opened for reading
	return writeSynced(dst, func(to *os.File) error { return fill(to, from) })
}

// copyFile makes dst with a copy of the bytes of src, holes left out.
func copyFile(ctx context.Context, dst, src string, sizeBytes int64) error {
	return fillFrom(dst, src, func(to, from *os.File) error {
		if err := copySparse(ctx, to, from); err != nil {
			return err
		}
		return to.Truncate(sizeBytes)
	})
}

// copySparse copies only what is not a hole.
func copySparse(ctx context.Context, dst, src *os.File) error {
	for offset := int64(0); ; {
		data, err := unix.Seek(int(src.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		if err != nil {
			return fmt.Errorf("look for data: %w", err)
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("look for hole: %w", err)
		}
		for at := data; at < hole; at += copyChunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := copyRange(dst, src, at, min(copyChunk, hole-at)); err != nil {
				return err
			}
		}
		offset = hole
	}
}

// copyRange uses copy_file_range(2) where Go finds that it can.
func copyRange(dst, src *os.File, offset, length int64) error {
	if _, err := dst.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	if _, err := src.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyN(dst, src, length)
	return err
}
