package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// blockBytes is the unit of everything on the disk.
const blockBytes = 4096

// ErrTooSmall says that the disk does not fit: into Output.SizeBytes, the block device or the file system of the file.
var ErrTooSmall = fmt.Errorf("out of space: %w", errdefs.ErrResourceExhausted)

// TooSmallError is an ErrTooSmall that knows how much is needed.
type TooSmallError struct {
	// NeededBytes is the size of the whole disk.
	NeededBytes int64
	text        string
}

func (e *TooSmallError) Error() string { return e.text + ": " + ErrTooSmall.Error() }

// Unwrap gives ErrTooSmall.
func (e *TooSmallError) Unwrap() error { return ErrTooSmall }

// target is where the disk is built: a file that has no name yet, or a block device whose first block is cleared.
type target struct {
	*os.File
	// limit is the number of bytes that fit; 0 means that only the file system sets a limit.
	limit int64
	// why names what sets the limit.
	why string
	// device says that it is a block device.
	device bool
	// full says that there is no more room. Everything written then is only counted, to say at the end how much is
	// needed.
	full atomic.Bool
	// direct, if not nil, is the same file for writes past the page cache; indirect says that they do not work.
	direct   *os.File
	indirect atomic.Bool
	// written counts bytes.
	written atomic.Int64
	// publish makes the complete disk visible; discard removes everything that could be mistaken for one.
	publish func(ctx context.Context) error
	discard func() error
}

var (
	_ io.WriterAt = (*target)(nil)
	_ fileCopier  = (*target)(nil)
)

// WriteAt writes, or once there is no more room only pretends to.
func (t *target) WriteAt(p []byte, off int64) (int, error) {
	if t.limit > 0 && off+int64(len(p)) > t.limit {
		t.full.Store(true)
	}
	if t.full.Load() {
		return len(p), nil
	}
	n, err := t.put(p, off)
	t.written.Add(int64(n))
	if noSpace(err) {
		t.full.Store(true)
		return len(p), nil
	}
	return n, err
}

// copyFrom lets the kernel copy, which on some file systems only shares the blocks.
func (t *target) copyFrom(offset int64, src *os.File, n int64) (copied int64, err error) {
	if t.limit > 0 && offset+n > t.limit {
		t.full.Store(true)
	}
	for copied < n && !t.full.Load() {
		from, to := copied, offset+copied
		done, err := unix.CopyFileRange(int(src.Fd()), &from, int(t.Fd()), &to, int(min(n-copied, 1<<30)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case noSpace(err):
			t.full.Store(true)
		case err != nil || done <= 0:
			return copied, nil //nolint:nilerr // other file systems, a block device, an old kernel: the caller copies
		}
		copied += int64(done)
		t.written.Add(int64(done))
	}
	return n, nil
}

func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// checkRoom fails if not all of the disk's bytes found room.
func (t *target) checkRoom(needed int64) error {
	if t.limit > 0 && needed > t.limit {
		t.full.Store(true)
	}
	switch {
	case !t.full.Load():
		return nil
	case t.limit > 0 && needed <= t.limit:
		return fmt.Errorf("the disk needs %s (%d bytes) and has that, but the storage that holds %s has run full: %w",
			units.BytesSize(float64(needed)), needed, t.Name(), errdefs.ErrUnavailable)
	}
	return &TooSmallError{needed, fmt.Sprintf("the disk needs %s (%d bytes), %s", units.BytesSize(float64(needed)), needed, t.why)}
}

// checkOutput says early whether openTarget would refuse. It changes nothing.
func checkOutput(out Output) error {
	device, err := isDevice(out)
	if err != nil || !device {
		return err
	}
	f, _, err := openBlank(out)
	if err != nil {
		return err
	}
	return f.Close()
}

// isDevice distinguishes block devices from plain files, and refuses everything else.
func isDevice(out Output) (bool, error) {
	info, err := os.Stat(out.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(out.Path)); err != nil {
			return false, fmt.Errorf("open output: %w", err)
		}
		return false, nil
	case err != nil:
		return false, fmt.Errorf("open output: %w", err)
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		return true, nil
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("output %s is neither a plain file nor a block device: %w", out.Path, errdefs.ErrInvalidArgument)
	case !out.Force:
		return false, fmt.Errorf("output %s exists; choose another name or force its replacement (--force): %w", out.Path, errdefs.ErrAlreadyExists)
	}
	return false, nil
}

// openTarget prepares the place of the disk.
func openTarget(out Output) (*target, error) {
	device, err := isDevice(out)
	if err != nil {
		return nil, err
	}
	if device {
		return openDevice(out)
	}
	return openFile(out)
}

// openFile makes a file without a name in the directory where the disk will be. Its mode keeps others out, since the
// files of images have owners and modes that mean nothing to those who can read the whole disk.
func openFile(out Output) (*target, error) {
	dir := filepath.Dir(out.Path)
	p := pending{out: out}
	f, err := unnamedFile(dir)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		// File systems without O_TMPFILE, such as NFS.
		if f, err = os.CreateTemp(dir, "."+filepath.Base(out.Path)+".*.partial"); err == nil {
			p.hidden = f.Name()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open output: %w", err)
	}
	p.file = f
	t := &target{File: f, limit: out.SizeBytes, why: fmt.Sprintf("the file system of %s is full", dir)}
	if out.SizeBytes > 0 {
		t.why = fmt.Sprintf("its size was fixed at %s (%d bytes)", units.BytesSize(float64(out.SizeBytes)), out.SizeBytes)
		if free, err := freeBytes(dir); err == nil && free < out.SizeBytes {
			t.why += fmt.Sprintf(" and the file system of %s has only %s", dir, units.BytesSize(float64(free)))
		}
	}
	t.openDirect()
	t.publish = func(ctx context.Context) error {
		if err := t.closeDirect(); err != nil {
			return fmt.Errorf("close disk: %w", err)
		}
		return p.publish(ctx)
	}
	t.discard = func() error { return errors.Join(t.closeDirect(), p.discard()) }
	return t, nil
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // no file system has 2^63 bytes
}

// unnamedFile makes a file without a name in dir. It vanishes with its last descriptor, however this process ends.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make unnamed file in", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)")), nil
}

// newSpool makes a file for a layer's data in dir that vanishes when it is closed.
func newSpool(dir string) (*os.File, error) {
	f, err := unnamedFile(dir)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return f, err
	}
	if f, err = os.CreateTemp(dir, ".berth-spool-*.partial"); err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// pending is a file on its way to its name.
type pending struct {
	file *os.File
	out  Output
	// hidden is its name until then; empty where the file system can do without.
	hidden string
}

func (p pending) publish(ctx context.Context) error {
	if err := p.file.Sync(); err != nil {
		return fmt.Errorf("flush disk: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.rename(); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(p.out.Path)), p.file.Close())
}

func (p pending) discard() error {
	err := p.file.Close()
	if p.hidden != "" {
		err = errors.Join(err, os.Remove(p.hidden))
	}
	return err
}

func (p pending) rename() error {
	if !p.out.Force {
		err := p.link(p.out.Path)
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("output %s has been made by somebody else meanwhile: %w", p.out.Path, errdefs.ErrAlreadyExists)
		}
		if err != nil {
			return fmt.Errorf("name disk: %w", err)
		}
		if p.hidden != "" {
			return os.Remove(p.hidden)
		}
		return nil
	}
	// A link cannot replace, a rename can: it needs a hidden name first.
	hidden := p.hidden
	if hidden == "" {
		var err error
		if hidden, err = hiddenName(p.out.Path); err != nil {
			return err
		}
		if err := p.link(hidden); err != nil {
			return fmt.Errorf("name disk: %w", err)
		}
	}
	if err := os.Rename(hidden, p.out.Path); err != nil {
		err = fmt.Errorf("name disk: %w", err)
		if p.hidden == "" {
			err = errors.Join(err, os.Remove(hidden))
		}
		return err
	}
	return nil
}

// link gives the file another name (open(2), O_TMPFILE).
func (p pending) link(path string) error {
	if p.hidden != "" {
		return unix.Link(p.hidden, path)
	}
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", p.file.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

// hiddenName is a free name beside path.
func hiddenName(path string) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.partial")
	if err != nil {
		return "", fmt.Errorf("name disk: %w", err)
	}
	return f.Name(), errors.Join(f.Close(), os.Remove(f.Name()))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("flush directory: %w", err)
	}
	// Some network file systems cannot flush a directory and say EINVAL.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return errors.Join(fmt.Errorf("flush directory %s: %w", dir, err), d.Close())
	}
	return d.Close()
}

// setSize makes a file as long as the disk, or as it was asked to be.
func (t *target) setSize(diskBytes int64) error {
	if t.device {
		return nil
	}
	if err := t.Truncate(max(diskBytes, t.limit)); err != nil {
		return fmt.Errorf("set size of disk: %w", err)
	}
	return nil
}
