package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

const (
	pollFirst = time.Millisecond
	pollMost  = 50 * time.Millisecond
	// claimGrace is how long a device may seem to be in use before it is believed.
	claimGrace = 2 * time.Second
	// freeGrace is how long others may keep a device open that is to be free, such as udev, which looks at every
	// change.
	freeGrace = 5 * time.Second
)

// DetachLoop detaches the device if it still is the loop device that was found: the number of a device that is gone is
// soon another's. It returns when the device is free again, or ctx ends. One that is not attached any more, or is
// another's by now, is no error. A device that is in use (see InUse) is ErrInUse and stays as it is; the kernel alone
// would accept the request and detach it at an unknown time later. So is one that somebody has open for longer than a
// moment, without claiming it; that one does go when they are done, which for a read that the storage does not answer
// may be never.
func DetachLoop(ctx context.Context, loop Loop) error {
	if err := detachLoop(ctx, loop); err != nil {
		return fmt.Errorf("detach loop device %s: %w", loop.Path, err)
	}
	return nil
}

func detachLoop(ctx context.Context, loop Loop) error {
	dev, err := claim(ctx, loop)
	if errors.Is(err, blockdev.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	is, ok, err := status(dev)
	if err != nil || !ok || !is.same(loop) {
		return errors.Join(err, dev.Close())
	}
	err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		err = nil
	}
	// The kernel detaches when the last opener, at best this one, is gone.
	if err := errors.Join(err, dev.Close()); err != nil {
		return err
	}
	wait, end := newPoll(), time.Now().Add(freeGrace)
	for {
		is, ok, err := attached(loop.Path)
		if err != nil || !ok || !is.same(loop) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("somebody has it open, or reads of it are not answered; it goes when they are done: %w", blockdev.ErrInUse)
		}
		if err := wait.next(ctx); err != nil {
			return fmt.Errorf("wait until nobody has the device open: %w", err)
		}
	}
}

// claim opens the device for nobody else. Whoever makes a mount namespace, such as a container that is being started,
// has a copy of every mount for a moment, so a device that was unmounted just now may seem to be in use a little
// longer.
func claim(ctx context.Context, loop Loop) (*os.File, error) {
	deadline := time.Now().Add(claimGrace)
	wait := newPoll()
	for {
		dev, err := openBlock(loop.Path, unix.O_RDONLY|unix.O_EXCL)
		if !errors.Is(err, unix.EBUSY) {
			return dev, err
		}
		if err := claimed(loop); !errors.Is(err, blockdev.ErrInUse) {
			if err == nil {
				err = blockdev.ErrNotFound
			}
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, blockdev.ErrInUse
		}
		if err := wait.next(ctx); err != nil {
			return nil, fmt.Errorf("%w: %w", blockdev.ErrInUse, err)
		}
	}
}

// claimed tells a claim on our device from one on a device that has become another's.
func claimed(loop Loop) error {
	is, ok, err := LoopAt(loop.Path)
	if err != nil || !ok || !is.same(loop) {
		return err
	}
	return blockdev.ErrInUse
}

// attached looks in sysfs first, because opening the device would itself delay what is waited for.
func attached(path string) (Loop, bool, error) {
	_, err := os.Stat(filepath.Join(sysBlock, filepath.Base(path), "loop", "backing_file"))
	if errors.Is(err, fs.ErrNotExist) {
		return Loop{}, false, nil
	}
	if err != nil {
		return Loop{}, false, fmt.Errorf("look at loop device: %w", err)
	}
	loop, ok, err := LoopAt(path)
	if errors.Is(err, blockdev.ErrNotFound) {
		return Loop{}, false, nil
	}
	return loop, ok, err
}

func (l Loop) same(other Loop) bool {
	return l.Path == other.Path && l.Dev == other.Dev && l.Inode == other.Inode && l.Tag == other.Tag
}

// poll waits a little longer each time, for conditions that the kernel gives no event for.
type poll struct{ delay time.Duration }

func newPoll() *poll { return &poll{delay: pollFirst} }

func (p *poll) next(ctx context.Context) error {
	timer := time.NewTimer(p.delay)
	defer timer.Stop()
	p.delay = min(2*p.delay, pollMost)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
