package snapshotter

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// lookWait is how long a layer's directory may take to be looked at, as long as the stage waits for a device that
// serves. Healthy ones take milliseconds.
const lookWait = 3 * time.Second

// lookAt is os.Lstat for what lies on a layer disk, which may have stopped to answer since its source was asked: the
// kernel then lets nobody interrupt the call. containerd holds the lock of its snapshots for as long as a Prepare
// takes, its garbage collection waits for that lock, and everything else waits behind that, so no answer in time is
// errdefs.ErrUnavailable. The call that hangs keeps its goroutine until the device answers or goes.
func lookAt(ctx context.Context, dir string) (fs.FileInfo, error) {
	type answer struct {
		info fs.FileInfo
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		info, err := os.Lstat(dir)
		done <- answer{info, err}
	}()
	timer := time.NewTimer(lookWait)
	defer timer.Stop()
	select {
	case a := <-done:
		return a.info, a.err
	case <-timer.C:
		return nil, fmt.Errorf("%s has not answered for %s: %w", dir, lookWait, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return nil, fmt.Errorf("look at %s: %w", dir, ctx.Err())
	}
}
