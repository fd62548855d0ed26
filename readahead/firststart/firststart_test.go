package firststart_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/builder"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/firststart"
	"berth.dev/berth/readahead/recorder"
	"berth.dev/berth/test/harness/image"
)

// world is a node with one real disk, mounted and cold.
type world struct {
	t    *testing.T
	disk readahead.Disk
	// leaving ends all visits.
	leaving context.Context //nolint:containedctx // stands for the stage's own
	leave   context.CancelFunc
	passed  chan firststart.Start
	kept    chan *accesslist.List

	mu     sync.Mutex
	visits int
	lists  map[string]bool
}

var (
	_ readahead.Disks  = (*world)(nil)
	_ firststart.Lists = (*world)(nil)
)

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	img, err := image.New(image.Spec{Layers: []image.Layer{{Entries: []image.Entry{
		image.File("read", strings.Repeat("r", 5000)), image.File("own", strings.Repeat("o", 5000)), image.File("unread", "u"),
	}}}})
	require.NoError(t, err)
	dir := t.TempDir()
	_, err = layout.Write(filepath.Join(dir, "layout"), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	require.NoError(t, err)
	file := filepath.Join(dir, "disk.img")
	_, err = builder.Build(t.Context(), builder.Options{Images: []string{"app:1=oci:" + filepath.Join(dir, "layout")}, Output: builder.Output{Path: file}})
	require.NoError(t, err)
	w := &world{t: t, passed: make(chan firststart.Start, 10), kept: make(chan *accesslist.List, 10), lists: map[string]bool{}}
	w.leaving, w.leave = context.WithCancel(t.Context())
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	w.disk = readahead.Disk{Name: "disk", MountPoint: t.TempDir(), Mounted: time.Now()}
	w.disk.Index, w.disk.Identity, err = layerdisk.ReadIndex(f)
	require.NoError(t, err)
	w.disk.Device, err = recorder.ColdMount(t.Context(), file, w.disk.MountPoint, fsmount.EROFS)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.Zero(t, w.visits)
		require.NoError(t, fsmount.Unmount(w.disk.MountPoint), "nothing of the disk is held")
	})
	return w
}

func (w *world) Visit(ctx context.Context, uuid string) (context.Context, readahead.Disk, func(), error) {
	if uuid != w.disk.Identity.UUID {
		return nil, readahead.Disk{}, nil, errdefs.ErrNotFound
	}
	visit, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(w.leaving, cancel)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.visits++
	return visit, w.disk, func() {
		stop()
		cancel()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.visits--
	}, nil
}

func (w *world) Has(_ context.Context, _ readahead.Disk, image string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lists[image], nil
}

func (w *world) Keep(_ context.Context, _ readahead.Disk, l *accesslist.List) error {
	w.kept <- l
	return nil
}

func (w *world) recorder(duration time.Duration, since time.Time) *firststart.Recorder {
	w.t.Helper()
	r, err := firststart.New(w.t.Context(), firststart.Config{
		Disks: w, Lists: w, Time: duration, Since: since, Pass: func(s firststart.Start) { w.passed <- s },
	})
	require.NoError(w.t, err)
	w.t.Cleanup(func() { require.NoError(w.t, r.Close()) })
	return r
}

func (w *world) path(name string) string {
	return filepath.Join(w.disk.MountPoint, layerdisk.LayerDir(0), name)
}

// start of the disk's image.
func (w *world) start(container bool) firststart.Start {
	return firststart.Start{DiskUUID: w.disk.Identity.UUID, ChainID: w.disk.Index.Images[0].ChainID, Container: container}
}

func TestFirstStartIsRecordedOnce(t *testing.T) {
	w := newWorld(t)
	r := w.recorder(2*time.Second, time.Time{})
	r.Starting(firststart.Start{DiskUUID: "another disk"})
	require.Equal(t, "another disk", (<-w.passed).DiskUUID)
	r.Starting(w.start(false)) // its layers are pulled: nothing is read ahead, for the container is still to come
	r.Starting(w.start(true))  // returns when what is read now is recorded
	_, err := os.ReadFile(w.path("own"))
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "cat", w.path("read")).Output()
	require.NoError(t, err)
	require.Len(t, out, 5000)
	l := <-w.kept
	require.Equal(t, "docker.io/library/app:1", l.Image)
	require.NoError(t, l.Check())
	require.Len(t, l.Files, 1, "what this process reads is not the container's")
	require.Equal(t, "read", l.Files[0].Path)
	require.Empty(t, w.passed)

	r.Starting(w.start(true))
	require.True(t, (<-w.passed).Container, "the disk is not cold any more")
	require.Empty(t, w.kept)
}

func TestStartsThatAreNotRecorded(t *testing.T) {
	for name, change := range map[string]func(*world, *firststart.Start) time.Time{
		"there is a list": func(w *world, _ *firststart.Start) time.Time {
			w.lists["docker.io/library/app:1"] = true
			return time.Time{}
		},
		"mounted before":   func(*world, *firststart.Start) time.Time { return time.Now() },
		"another image":    func(_ *world, s *firststart.Start) time.Time { s.ChainID = digest.FromString("x"); return time.Time{} },
		"no image at all":  func(_ *world, s *firststart.Start) time.Time { s.ChainID = ""; return time.Time{} },
		"device is wrong":  func(w *world, _ *firststart.Start) time.Time { w.disk.Device = "/dev/null"; return time.Time{} },
		"not of this disk": func(_ *world, s *firststart.Start) time.Time { s.DiskUUID = "x"; return time.Time{} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.start(true)
			r := w.recorder(time.Hour, change(w, &s))
			r.Starting(s)
			require.Equal(t, s, <-w.passed)
		})
	}
}

// A disk that leaves, and a daemon that ends, wait for no recording.
func TestRecordingLetsTheDiskGo(t *testing.T) {
	for name, end := range map[string]func(*world, *firststart.Recorder){
		"disk leaves": func(w *world, r *firststart.Recorder) {
			w.leave()
			require.Eventually(w.t, func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.visits == 0
			}, 10*time.Second, time.Millisecond)
		},
		"daemon ends": func(w *world, r *firststart.Recorder) { require.NoError(w.t, r.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := w.recorder(time.Hour, time.Time{})
			r.Starting(w.start(true))
			end(w, r)
			require.Empty(t, w.kept)
		})
	}
}

func TestStartThatReadsNothing(t *testing.T) {
	w := newWorld(t)
	r := w.recorder(time.Millisecond, time.Time{})
	r.Starting(w.start(true))
	require.NoError(t, r.Close())
	require.Empty(t, w.kept)
	_, err := firststart.New(t.Context(), firststart.Config{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}
