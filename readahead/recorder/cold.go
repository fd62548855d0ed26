package recorder

import (
	"context"
	"errors"
	"fmt"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
)

// ColdMount mounts the layer disk in the file or block device at path on the directory target, with nothing of it in
// the page cache, whoever else has it mounted. The kernel detaches the loop device, whose path is returned, when it is
// unmounted.
func ColdMount(ctx context.Context, path, target string, fs fsmount.FileSystem) (dev string, err error) {
	loop, open, err := device.AttachLoopWhileUsed(ctx, path, device.LoopOptions{ReadOnly: true})
	if err != nil {
		return "", fmt.Errorf("mount %s for recording: %w", path, err)
	}
	err = fsmount.Mount(loop.Path, target, fs)
	if err := errors.Join(err, open.Close()); err != nil {
		return "", fmt.Errorf("mount %s for recording: %w", path, err)
	}
	return loop.Path, nil
}
