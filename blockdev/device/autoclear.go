package device

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// ClearWithLastUser has the kernel detach the loop device as soon as nobody uses it any more, and makes the returned file
// a user of it: a process that is killed leaves no device behind. Mounts are users too.
func ClearWithLastUser(loop Loop) (*os.File, error) {
	f, err := clearWithLastUser(loop)
	if err != nil {
		return nil, fmt.Errorf("have loop device %s cleared with its last user: %w", loop.Path, err)
	}
	return f, nil
}

func clearWithLastUser(loop Loop) (_ *os.File, err error) {
	f, err := openBlock(loop.Path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	is, ok, err := status(f)
	if err != nil {
		return nil, err
	}
	if !ok || !is.same(loop) {
		return nil, fmt.Errorf("it is another's now: %w", blockdev.ErrNotFound)
	}
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		return nil, err
	}
	return f, nil
}
