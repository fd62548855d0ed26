package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
)

// prover reads disks.
type prover interface {
	// Prove makes sure that the device is read-only and reads what disk is on it.
	Prove(dev blockdev.Device) (proof, error)
	// Sample returns when so much of the device has been read as is enough to know how fast it is, past all caches.
	Sample(path string, sizeBytes int64) error
	// Verify looks at what is mounted: the wanted disk, with all its layers' directories.
	Verify(ctx context.Context, target string, want layerdisk.Identity) error
	// CheckDevice asks the device itself, past all caches, whether it still is this one and has this disk.
	CheckDevice(path string, number uint64, want layerdisk.Identity) error
	// CheckDir says whether the directory can be read.
	CheckDir(dir string) error
}

// mounter mounts, see package fsmount.
type mounter interface {
	Mount(device, target string, fs fsmount.FileSystem) error
	Unmount(target string) error
	At(target string) ([]fsmount.Mounted, error)
	Below(dir string) ([]fsmount.Mounted, error)
}

// system is the operating system as far as this package needs it, so that tests can stand in for it.
type system interface {
	prover
	mounter
}

// proof is what was read from a device.
type proof struct {
	index    *layerdisk.Index
	identity layerdisk.Identity
	// number of the device it was read from.
	number    uint64
	sizeBytes int64
}

// kernel is the real system.
type kernel struct{}

var _ system = kernel{}

func (kernel) Prove(dev blockdev.Device) (proof, error) {
	if !dev.ReadOnly {
		// A driver that cannot attach read-only: the kernel can still refuse writes on this node.
		if _, err := device.SetReadOnly(dev.Path, true); err != nil {
			return proof{}, err
		}
	}
	f, err := os.Open(dev.Path)
	if err != nil {
		return proof{}, fmt.Errorf("open device: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return proof{}, fmt.Errorf("look at device %s: %w", dev.Path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return proof{}, fmt.Errorf("%s is not a block device: %w", dev.Path, blockdev.ErrInvalid)
	}
	ix, id, err := layerdisk.ReadIndex(f)
	if err != nil {
		return proof{}, fmt.Errorf("read layer disk on %s: %w", dev.Path, err)
	}
	size, err := device.SizeBytes(dev.Path)
	if err != nil {
		return proof{}, err
	}
	p := proof{index: ix, identity: id, number: st.Rdev, sizeBytes: size}
	// What was read may have come from the page cache of a device that is gone.
	if err := (kernel{}).CheckDevice(dev.Path, p.number, id); err != nil {
		return proof{}, err
	}
	return p, nil
}

func (kernel) Verify(ctx context.Context, target string, want layerdisk.Identity) error {
	_, err := layerdisk.OpenMounted(ctx, target, want)
	return err
}

func (kernel) CheckDevice(path string, number uint64, want layerdisk.Identity) error {
	first, err := device.ReadFirst(path, number)
	if err != nil {
		return err
	}
	h, err := layerdisk.ParseHeader(first)
	if err != nil {
		return fmt.Errorf("read layer disk on %s: %w", path, err)
	}
	if err := h.Identity().Check(want); err != nil {
		return fmt.Errorf("read layer disk on %s: %w", path, err)
	}
	return nil
}

func (kernel) CheckDir(dir string) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open layer directory: %w", err)
	}
	buf := make([]byte, 512)
	_, err = unix.Getdents(int(f.Fd()), buf)
	// Only a directory that could be read is healthy; one name more than fits the buffer is none of our concern.
	if errors.Is(err, unix.EINVAL) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("read layer directory %s: %w", dir, err)
	}
	return errors.Join(err, f.Close())
}

func (kernel) Mount(dev, target string, fs fsmount.FileSystem) error {
	return fsmount.Mount(dev, target, fs)
}

func (kernel) Unmount(target string) error { return fsmount.Unmount(target) }

func (kernel) At(target string) ([]fsmount.Mounted, error) { return fsmount.At(target) }

func (kernel) Below(dir string) ([]fsmount.Mounted, error) { return fsmount.Below(dir) }

// bootID changes with each boot (random(4)).
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// awaitFor calls fn, which may hang in the kernel where no signal and no context reaches it, and stops waiting for it
// when ctx ends or the device has had most time to answer. What fn does later is found by whoever looks next: every
// step looks first.
func awaitFor(ctx context.Context, most time.Duration, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("the device has not answered for %s: %w", most, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// deviceWait is how long a device may take for what is done with it while it does not serve: reading its index,
// mounting, unmounting. A volume that a cloud restores lazily takes seconds for the first of these; one that takes
// longer than this comes too late for any pull.
const deviceWait = time.Minute

// await is awaitFor with deviceWait.
func await(ctx context.Context, fn func() error) error { return awaitFor(ctx, deviceWait, fn) }
