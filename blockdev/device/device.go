// Package device reads and sets what the kernel knows of block devices and loop devices: their size, their read-only
// flag, and which loop device stands for which file. It knows no volume and no mount.
package device

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// SizeBytes returns the size of the block device at path: the offset of its end, as BLKGETSIZE64 reports it.
func SizeBytes(path string) (int64, error) {
	f, err := openBlock(path, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("ask size of device %s: %w", path, err)
	}
	return size, nil
}

// ReadOnly says whether the kernel refuses writes to the block device at path (BLKROGET).
func ReadOnly(path string) (bool, error) {
	f, err := openBlock(path, unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return readOnly(f)
}

func readOnly(f *os.File) (bool, error) {
	flag, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
	if err != nil {
		return false, fmt.Errorf("ask read-only flag of device %s: %w", f.Name(), err)
	}
	return flag != 0, nil
}

// SetReadOnly makes the kernel refuse, or allow, writes to the block device at path (BLKROSET), and says what was so
// before. It acts on the whole device for every user of it. A device whose hardware or backing file is read-only cannot
// be made writable; the flag is read back, so that success means it is so.
func SetReadOnly(path string, readonly bool) (was bool, err error) {
	f, err := openBlock(path, unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return setReadOnly(f, readonly)
}

// ClaimReadOnly makes the kernel refuse writes to the block device at path, which nobody may use: others that have it
// mounted, it or a part of it, would lose what they write. It says what was so before. A device that is read-only
// already may be in use; one that is not, and is in use, is ErrInUse.
func ClaimReadOnly(path string) (was bool, err error) {
	if was, err = ReadOnly(path); err != nil || was {
		return was, err
	}
	f, err := openBlock(path, unix.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return false, fmt.Errorf("make device %s read-only: unmount it first: %w", path, blockdev.ErrInUse)
	}
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return setReadOnly(f, true)
}

func setReadOnly(f *os.File, readonly bool) (was bool, err error) {
	was, err = readOnly(f)
	if err != nil || was == readonly {
		return was, err
	}
	flag := 0
	if readonly {
		flag = 1
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, flag); err != nil {
		return was, fmt.Errorf("set read-only flag of device %s: %w", f.Name(), err)
	}
	is, err := readOnly(f)
	if err != nil {
		return was, err
	}
	if is != readonly {
		return was, fmt.Errorf("set read-only flag of device %s: the device kept its own: %w", f.Name(), blockdev.ErrUnsupported)
	}
	return was, nil
}

// Number is the device number of the block device at path, as mountinfo and stat(2) know it.
func Number(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("look at device %s: %w", path, notFound(err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("look at device %s: not a block device: %w", path, blockdev.ErrInvalid)
	}
	return st.Rdev, nil
}

// InUse says whether the block device at path is claimed: mounted in whatever mount namespace, still used by a file
// system that was unmounted under an overlay, or opened with O_EXCL. The kernel refuses a second claim with EBUSY
// (open(2), O_EXCL on block devices).
func InUse(path string) (bool, error) {
	f, err := openBlock(path, unix.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, f.Close()
}

func openBlock(path string, flags int) (*os.File, error) {
	if _, err := Number(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open device: %w", notFound(err))
	}
	return f, nil
}

// notFound adds the class to errors that mean there is no such device.
func notFound(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", err, blockdev.ErrNotFound)
	}
	return err
}

// firstBytes is a multiple of every logical block size that Linux knows and of the page, as O_DIRECT wants it.
const firstBytes = 4096

// ReadFirst reads the first 4096 bytes of the block device at path from the device itself, past the page cache where
// the device can do that, so that one that has gone or is broken shows. The device must be the one of the number, else
// ErrNotFound.
func ReadFirst(path string, number uint64) ([]byte, error) {
	f, err := openBlock(path, unix.O_RDONLY|unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) {
		f, err = openBlock(path, unix.O_RDONLY)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("look at device %s: %w", path, err)
	}
	if st.Rdev != number {
		return nil, fmt.Errorf("device %s has number %d:%d now and had %d:%d: %w", path,
			unix.Major(st.Rdev), unix.Minor(st.Rdev), unix.Major(number), unix.Minor(number), blockdev.ErrNotFound)
	}
	twice := make([]byte, 2*firstBytes)
	skip := -int(uintptr(unsafe.Pointer(&twice[0]))) & (firstBytes - 1) //nolint:gosec // only to align the buffer
	buf := twice[skip : skip+firstBytes]
	if _, err := io.ReadFull(f, buf); err != nil {
		return nil, fmt.Errorf("read device %s: %w", path, err)
	}
	return buf, nil
}

// Name is the kernel's name of the block device with the number, such as "sda", under which it is in /dev unless
// somebody decided otherwise; ErrNotFound if there is no such device.
func Name(number uint64) (string, error) {
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number)))
	if err != nil {
		return "", fmt.Errorf("find name of device %d:%d: %w", unix.Major(number), unix.Minor(number), notFound(err))
	}
	// sysfs has an exclamation mark where a name has a slash.
	return strings.ReplaceAll(filepath.Base(link), "!", "/"), nil
}
