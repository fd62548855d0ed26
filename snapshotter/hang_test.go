package snapshotter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/snapshotter"
)

// silence puts a disk where no call is ever answered: a FUSE file system whose server says nothing. speak ends it, and
// whatever hangs there then has an error.
func silence(t *testing.T, d *disk) (speak func()) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(d.mount), "silent")
	require.NoError(t, os.Mkdir(dir, 0o755))
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())
	require.NoError(t, unix.Mount("silent", dir, "fuse", 0, options))
	t.Cleanup(func() { require.NoError(t, mount.UnmountAll(dir, unix.MNT_DETACH)) })
	t.Cleanup(func() { _ = server.Close() }) // closed by the test, if it came so far
	was := d.mount
	d.mount = dir
	return func() {
		require.NoError(t, server.Close())
		d.mount = was
	}
}

// patience is many times what a test takes in which nothing hangs.
const patience = 30 * time.Second

// A disk may stop to answer right after the stage found it well. No Prepare waits for it: containerd holds a lock
// meanwhile that its garbage collection waits for, and every other pull and container behind that.
func TestDiskThatHangs(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	later := forge(t, "later", nil, tarOf(t, entry{name: "later", body: "l"}))
	local := forge(t, "local", nil, tarOf(t, entry{name: "local", body: "l"}))
	for name, how := range map[string]pulling{"sequential": {}, "early mounts": {parallel: 2, rebase: true}} {
		t.Run(name, func(t *testing.T) {
			// A layer with early mounts has its directory from the pull, so a container on it asks the disk for nothing
			// before it is mounted.
			asks := how.parallel == 0
			n := newNode(t, snapshotter.Config{}, append(pick(im, 0, 1, 2, 3, 4), later.layers...))
			n.mustPull(t, im, how)
			n.seen.take()
			speak := silence(t, n.source.disks[0])
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				ctx := how.context(t)
				_, err := n.meta.Prepare(ctx, "container", im.top().String())
				if errdefs.IsUnavailable(err) != asks {
					t.Errorf("a container on a layer of the disk: %v", err)
				}
				// What is on no disk, and what is on that disk only, are pulled as without it.
				for _, other := range []*image{local, later} {
					fetched, err := n.pull(t, other, how)
					if err != nil || len(fetched) != 1 {
						t.Errorf("pull %s: %v, %v", other.name, fetched, err)
					}
				}
				n.collect(t)
			}()
			select {
			case <-ended:
			case <-time.After(patience): // seconds, if nothing hangs
				t.Error("the disk holds up what it is not asked for")
			}
			speak()
			<-ended
			require.Len(t, n.source.holders(), len(im.layers), "the layers that could not be looked at are not held")
			_, err := n.meta.Prepare(how.context(t), "again", im.top().String())
			require.NoError(t, err)
		})
	}
}
