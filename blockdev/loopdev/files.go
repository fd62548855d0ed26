package loopdev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// meta is what a volume's or snapshot's file does not say itself.
type meta struct {
	// Source is the snapshot a volume was made from, or the volume a snapshot was taken of.
	Source  string    `json:"source,omitempty"`
	Created time.Time `json:"created"`
}

// object is a volume or a snapshot as it lies on the disk.
type object struct {
	meta
	sizeBytes int64
}

// load is ErrNotFound if there is none of that name.
func (d *Driver) load(kind, name string) (object, error) {
	info, err := os.Stat(d.path(kind, name, diskFile))
	if errors.Is(err, os.ErrNotExist) {
		return object{}, blockdev.ErrNotFound
	}
	if err != nil {
		return object{}, err
	}
	data, err := os.ReadFile(d.path(kind, name, metaFile))
	if err != nil {
		return object{}, err
	}
	o := object{sizeBytes: info.Size()}
	if err := json.Unmarshal(data, &o.meta); err != nil {
		return object{}, fmt.Errorf("read %s: %w", d.path(kind, name, metaFile), err)
	}
	return o, nil
}

// names of all volumes or snapshots.
func (d *Driver) names(kind string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, kind))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if checkName(kind, e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// make makes a volume or snapshot whose bytes fill writes. It is there whole or not at all: content first, then its
// directory, then the name.
func (d *Driver) make(kind, name string, m meta, fill func(*os.File) error) (err error) {
	temp, err := os.MkdirTemp(filepath.Join(d.dir, kind), tempPrefix+"new-")
	if err != nil {
		return full(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(full(err), os.RemoveAll(temp))
		}
	}()
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(temp, metaFile), func(f *os.File) error {
		_, err := f.Write(data)
		return err
	}); err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(temp, diskFile), fill); err != nil {
		return err
	}
	if err := syncDir(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, d.path(kind, name)); err != nil {
		return err
	}
	return syncDir(filepath.Join(d.dir, kind))
}

// remove takes the name away first, so that what is left by a crash is not taken for a whole one.
func (d *Driver) remove(kind, name string) error {
	temp := filepath.Join(d.dir, kind, tempPrefix+"old-"+name)
	err := os.Rename(d.path(kind, name), temp)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := syncDir(filepath.Join(d.dir, kind)); err != nil {
		return err
	}
	return os.RemoveAll(temp)
}

func writeSynced(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// full adds the class to errors that mean the storage is full.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%w: %w", err, blockdev.ErrNoSpace)
	}
	return err
}

// copyChunk is how much is copied between looks at the context.
const copyChunk = 16 << 20

// clone gives dst the bytes of the file at path, then the size, which is not smaller. File systems that can share blocks
// (xfs, btrfs) do that in no time, others copy, holes left out.
func clone(ctx context.Context, dst *os.File, path string, sizeBytes int64) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // opened for reading
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	// ioctl_ficlone(2): what file systems without it answer, and what it answers for files on two of them.
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) {
		err = copySparse(ctx, dst, src)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", path, err)
	}
	return dst.Truncate(sizeBytes)
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
