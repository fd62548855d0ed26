package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
)

// edgeBytes at the beginning and the end of a device are where file systems, partition tables and volume managers keep
// their marks.
const edgeBytes = 1 << 20

// openDevice takes a block device for the disk and clears its edges.
func openDevice(out Output) (*target, error) {
	f, size, err := openBlank(out)
	if err != nil {
		return nil, err
	}
	if err := clearEdges(f, size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	t := &target{File: f, device: true, limit: size, why: fmt.Sprintf("the device %s has %s (%d bytes)", out.Path, units.BytesSize(float64(size)), size)}
	if out.SizeBytes > 0 {
		t.limit, t.why = out.SizeBytes, fmt.Sprintf("its size was fixed at %s (%d bytes)", units.BytesSize(float64(out.SizeBytes)), out.SizeBytes)
	}
	t.openDirect()
	t.publish = func(context.Context) error {
		if err := errors.Join(t.closeDirect(), t.Sync()); err != nil {
			return fmt.Errorf("flush disk: %w", err)
		}
		return t.Close()
	}
	t.discard = func() error {
		// The header may have been on its way.
		_, err := t.File.WriteAt(make([]byte, blockBytes), 0)
		return errors.Join(err, t.closeDirect(), t.Sync(), t.Close())
	}
	return t, nil
}

// openBlank opens a block device that may be written to, and gives its size in whole blocks. O_EXCL makes the kernel
// refuse one that is mounted or otherwise claimed, and keeps others from claiming it while we write.
func openBlank(out Output) (_ *os.File, size int64, err error) {
	f, err := os.OpenFile(out.Path, os.O_RDWR|unix.O_EXCL, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, 0, fmt.Errorf("output device %s is mounted or in use by another; unmount it first: %w: %w", out.Path, err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, 0, fmt.Errorf("output device %s cannot be written to: %w: %w", out.Path, err, errdefs.ErrFailedPrecondition)
	case err != nil:
		return nil, 0, fmt.Errorf("open output: %w", err)
	}
	if size, err = checkDevice(f, out); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size, nil
}

func checkDevice(f *os.File, out Output) (size int64, err error) {
	readOnly, err := device.ReadOnly(out.Path)
	if err != nil {
		return 0, fmt.Errorf("open output: %w", err)
	}
	if readOnly {
		return 0, fmt.Errorf("output device %s is read-only: %w", out.Path, errdefs.ErrFailedPrecondition)
	}
	if size, err = device.SizeBytes(out.Path); err != nil {
		return 0, fmt.Errorf("open output: %w", err)
	}
	size -= size % blockBytes
	if size < edgeBytes || out.SizeBytes > size {
		return 0, fmt.Errorf("output device %s has %s (%d bytes), wanted are %d: %w",
			out.Path, units.BytesSize(float64(size)), size, max(edgeBytes, out.SizeBytes), ErrTooSmall)
	}
	return size, checkBlank(f, size, out)
}

// checkBlank refuses a device that seems to hold something.
func checkBlank(f *os.File, size int64, out Output) error {
	if out.Force {
		return nil
	}
	b := make([]byte, edgeBytes)
	for _, offset := range []int64{0, size - edgeBytes} {
		if _, err := f.ReadAt(b, offset); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read output device %s: %w", out.Path, err)
		}
		if len(bytes.TrimLeft(b, "\x00")) == 0 {
			continue
		}
		what := "something"
		if offset == 0 {
			what = contentName(b)
		}
		return fmt.Errorf("output device %s is not blank, it holds %s; force its replacement (--force) if that may be lost: %w", out.Path, what, errdefs.ErrAlreadyExists)
	}
	return nil
}

// contentName recognises the usual contents of devices, for the message alone.
func contentName(b []byte) string {
	for _, known := range []struct {
		offset      int
		magic, name string
	}{
		{0, "BERTHDSK", "a layer disk"},
		{0, "XFSB", "an XFS file system"},
		{0, "LUKS\xba\xbe", "a LUKS volume"},
		{0, "hsqs", "a SquashFS file system"},
		{512, "EFI PART", "a GPT partition table"},
		{512, "LABELONE", "an LVM volume"},
		{0x438, "\x53\xef", "an ext file system"},
		{1024, "\xe2\xe1\xf5\xe0", "an EROFS file system"},
		{4086, "SWAPSPACE2", "swap space"},
		{0x10040, "_BHRfS_M", "a Btrfs file system"},
		{510, "\x55\xaa", "a partition table or FAT file system"},
	} {
		if len(b) > known.offset && bytes.HasPrefix(b[known.offset:], []byte(known.magic)) {
			return known.name
		}
	}
	return "something"
}

// clearEdges removes the marks of what was there, so that neither it nor a half-made disk can be taken for something
// whole.
func clearEdges(f *os.File, size int64) error {
	for _, offset := range []int64{0, size - edgeBytes} {
		if _, err := f.WriteAt(make([]byte, edgeBytes), offset); err != nil {
			return fmt.Errorf("clear output device: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("clear output device: %w", err)
	}
	return nil
}
