package readahead

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/pagecache"
	"berth.dev/berth/test/harness/slowdisk"
	"berth.dev/berth/test/harness/slowdisk/lazy"
	"berth.dev/berth/test/harness/wait"
)

const page = 4096

// rig is a mounted layer disk with two layers: a file of 8 MiB in each, and in the upper one what must not be opened.
type rig struct {
	*testing.T
	disk Disk
	slow *slowdisk.Disk
}

const bigBytes = 8 << 20

// newRig mounts the disk; one that is slow restores 64 KiB at a time.
func newRig(t *testing.T, slow bool) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	dir, err := os.MkdirTemp("/tmp", "readahead")
	require.NoError(t, err)
	r := &rig{T: t}
	t.Cleanup(func() { r.close(dir) })
	file := filepath.Join(dir, "disk.img")
	secret := filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, make([]byte, page), 0o600))
	ix, id := layerdisktest.Disk(t, file, "erofs", func(layer, dir string) { populate(t, layer, dir, secret) },
		layerdisktest.Image{Reference: "docker.io/library/app:1", Layers: []string{"low", "high"}})
	info, err := os.Stat(file)
	require.NoError(t, err)
	if slow {
		speed := lazy.Typical()
		speed.BlockBytes = 64 << 10
		r.slow, err = slowdisk.Start(t.Context(), slowdisk.Config{Dir: dir, File: file, Speed: speed})
		require.NoError(t, err)
		file = r.slow.Path()
	}
	l, err := device.AttachLoop(t.Context(), file, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	number, err := device.Number(l.Path)
	require.NoError(t, err)
	mount := filepath.Join(dir, "d")
	require.NoError(t, os.Mkdir(mount, 0o700))
	require.NoError(t, fsmount.Mount(l.Path, mount, fsmount.EROFS))
	r.disk = Disk{Name: "disk", Identity: id, Device: l.Path, DeviceNumber: number, SizeBytes: info.Size(), MountPoint: mount, Index: ix}
	return r
}

func (r *rig) close(dir string) {
	if r.disk.MountPoint != "" {
		require.NoError(r, fsmount.Unmount(r.disk.MountPoint), "a replay keeps nothing open")
	}
	require.NoError(r, loop.DetachBelow(dir))
	if r.slow != nil {
		require.NoError(r, r.slow.Close())
	}
	require.NoError(r, leak.WaitNone(context.Background(), dir))
	require.NoError(r, os.RemoveAll(dir))
}

func populate(t *testing.T, layer, dir, secret string) {
	t.Helper()
	big := make([]byte, bigBytes)
	_, _ = rand.Read(big)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "lib"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lib", "big"), big, 0o644))
	if layer != "high" {
		return
	}
	require.NoError(t, os.Symlink("lib/big", filepath.Join(dir, "link")))
	require.NoError(t, os.Symlink("lib", filepath.Join(dir, "linkdir")))
	require.NoError(t, os.Symlink(secret, filepath.Join(dir, "out")))
	require.NoError(t, os.Symlink("..", filepath.Join(dir, "up")))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	require.NoError(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "empty"), nil, 0o644))
}

func (r *rig) list() *accesslist.List {
	return &accesslist.List{Image: "docker.io/library/app:1", Platform: "linux/amd64", Disk: r.disk.Identity.IndexDigest}
}

// cached is how many pages of a part of a file or device are in the page cache.
func (r *rig) cached(path string, offset, length int64) int {
	r.Helper()
	pages, err := pagecache.Pages(path, offset, length)
	require.NoError(r, err)
	return pages
}

func (r *rig) big(layer int) string {
	return filepath.Join(r.disk.MountPoint, "l", []string{"0", "1"}[layer], "lib/big")
}

// replay the list with so many workers and all the memory there is.
func (r *rig) replay(ctx context.Context, list *accesslist.List, workers int) (*progress, error) {
	require.NoError(r, list.Check())
	done := &progress{}
	rep := &replay{disk: &r.disk, list: list, workers: workers, limit: &limiter{}, memory: newBudget(1, availableMemory), progress: done}
	return done, rep.run(ctx)
}

// The page cache has what the list names, to the page, and nothing else of the files.
func TestReplayFillsPageCache(t *testing.T) {
	r := newRig(t, false)
	low, high := layerdisktest.DiffID("low"), layerdisktest.DiffID("high")
	require.Zero(t, r.cached(r.big(0), 0, bigBytes))
	l := r.list()
	l.Files = []accesslist.FileRange{
		{DiffID: high, Path: "lib/big", Offset: 5 << 20, Length: 16 * page},
		{DiffID: low, Path: "lib/big", Offset: 0, Length: 3 << 20},
		{DiffID: high, Path: "lib/big", Offset: bigBytes - page, Length: 1 << 35},
		{DiffID: layerdisktest.DiffID("elsewhere"), Path: "lib/big", Length: page},
	}
	l.Metadata = []accesslist.Range{{Offset: 0, Length: 3 * page}, {Offset: r.disk.SizeBytes - page, Length: 1 << 30}, {Offset: 1 << 35, Length: page}}
	done, err := r.replay(t.Context(), l, 4)
	require.NoError(t, err)
	require.Equal(t, 3<<20/page, r.cached(r.big(0), 0, bigBytes))
	require.Equal(t, 3<<20/page, r.cached(r.big(0), 0, 3<<20))
	require.Equal(t, 16+1, r.cached(r.big(1), 0, bigBytes))
	require.Equal(t, 16, r.cached(r.big(1), 5<<20, 16*page))
	require.Equal(t, 1, r.cached(r.big(1), bigBytes-page, page))
	require.Equal(t, 3, r.cached(r.disk.Device, 0, 3*page))
	require.Equal(t, 1, r.cached(r.disk.Device, r.disk.SizeBytes-page, page))
	require.Equal(t, int64(3<<20+17*page+4*page), done.bytes.Load())
	require.Equal(t, int64(1+6+1+1+1), done.pieces.Load(), "3 MiB are 6 pieces")
	require.Equal(t, int64(2), done.skipped.Load(), "a layer that is not here, and what is behind the end of the disk")
}

// Nothing of what a list may name leads out of the layer, or opens what hangs or acts when it is opened (a FIFO without
// a writer would hang here).
func TestHostileListsAreHarmless(t *testing.T) {
	r := newRig(t, false)
	paths := []string{"fifo", "null", "lib", "link", "linkdir/big", "out", "up/l/0/lib/big", "empty", "missing", "lib/big/x", "missing/x"}
	for _, path := range paths {
		t.Run(strings.ReplaceAll(path, "/", "-"), func(t *testing.T) {
			l := r.list()
			l.Files = []accesslist.FileRange{{DiffID: layerdisktest.DiffID("high"), Path: path, Length: 1 << 35}}
			done, err := r.replay(t.Context(), l, 2)
			require.NoError(t, err)
			require.Zero(t, done.bytes.Load())
			require.Equal(t, int64(1), done.skipped.Load(), "once, not for each of 65,536 pieces")
		})
	}
	require.Zero(t, r.cached(r.big(0), 0, bigBytes))
	require.Zero(t, r.cached(r.big(1), 0, bigBytes))

	// What Decode would refuse does not get out either.
	for _, path := range []string{"../0/lib/big", "lib/../../0/lib/big", "/etc/passwd", "/proc/self/exe"} {
		open, err := openLayers(&r.disk, &accesslist.List{Files: []accesslist.FileRange{{DiffID: layerdisktest.DiffID("high")}}})
		require.NoError(t, err)
		_, _, err = open.file(layerdisktest.DiffID("high"), path)
		require.ErrorIs(t, err, errNotThere, path)
		require.NoError(t, open.close())
	}
}

// So many reads are under way as there are workers, and no more are begun once the disk is to leave.
func TestReplayLetsGo(t *testing.T) {
	r := newRig(t, true)
	l := r.list()
	for i := range int64(100) {
		l.Files = append(l.Files, accesslist.FileRange{DiffID: layerdisktest.DiffID("low"), Path: "lib/big", Offset: i * 64 << 10, Length: page})
	}
	_, err := os.Stat(r.big(0)) // metadata is there
	require.NoError(t, err)
	before, err := r.slow.Stats(t.Context())
	require.NoError(t, err)
	require.NoError(t, r.slow.Hold(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	done := &progress{}
	go func() {
		rep := &replay{disk: &r.disk, list: l, workers: 3, limit: &limiter{}, memory: newBudget(1, availableMemory), progress: done}
		ended <- rep.run(ctx)
	}()
	waitFor(t, "three reads", func() bool { s, err := r.slow.Stats(t.Context()); return err == nil && s.Waiting == 3 })
	cancel()
	require.NoError(t, r.slow.Release(t.Context()))
	require.ErrorIs(t, <-ended, context.Canceled)
	after, err := r.slow.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(3), after.Reads-before.Reads)
	require.Equal(t, int64(3), done.pieces.Load())
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.NoError(t, wait.Until(t.Context(), time.Minute, what, func(context.Context) error {
		if !cond() {
			return os.ErrNotExist
		}
		return nil
	}))
}

// A disk that cannot be read is not asked again and again.
func TestReplayEndsAtFirstError(t *testing.T) {
	r := newRig(t, true)
	_, err := os.Stat(r.big(0))
	require.NoError(t, err)
	l := r.list()
	l.Files = []accesslist.FileRange{{DiffID: layerdisktest.DiffID("low"), Path: "lib/big", Length: bigBytes}}
	require.NoError(t, r.slow.Fail(t.Context()))
	_, err = r.replay(t.Context(), l, 1)
	require.ErrorIs(t, err, unix.EIO)
	require.ErrorContains(t, err, "lib/big")
	require.NoError(t, r.slow.Mend(t.Context()))
}

// Files are opened on the disk that was proved: a device file that stands for another one by now is refused.
func TestOtherDeviceIsRefused(t *testing.T) {
	r := newRig(t, false)
	l := r.list()
	l.Metadata = []accesslist.Range{{Length: page}}
	r.disk.DeviceNumber++
	_, err := r.replay(t.Context(), l, 1)
	require.ErrorContains(t, err, "another one")
	r.disk.DeviceNumber--
}

// Whoever wrote the file system, its metadata is either found or known not to be.
func TestMetadataOfForeignFileSystem(t *testing.T) {
	r := newRig(t, false)
	_, err := metadataOf(&r.disk, "app")
	require.ErrorIs(t, err, errNothing, "mkfs.erofs keeps it elsewhere")
}

// Reads of workers have the lowest priority, and only theirs.
func TestPriority(t *testing.T) {
	get := func() uintptr {
		prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, 0, 0)
		require.Zero(t, errno)
		return prio
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := get()
	worker := make(chan uintptr)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		lowerPriority()
		worker <- get()
	}()
	require.EqualValues(t, lowestPriority, <-worker)
	require.Equal(t, before, get())
}

func TestPiecesAreInOrder(t *testing.T) {
	l := &accesslist.List{
		Metadata: []accesslist.Range{{Offset: 7, Length: 10}},
		Files:    []accesslist.FileRange{{Path: "a", Offset: 100, Length: 2*pieceBytes + 1}, {Path: "b", Length: 5}, {Path: "c", Length: 9 * pieceBytes}},
	}
	p := &pieces{list: l}
	var got []piece
	for {
		next, ok := p.next()
		if !ok {
			break
		}
		got = append(got, next)
		if next.at != 1 {
			p.skip(next) // what is left of the range: nothing but of the last
		}
	}
	require.Equal(t, []piece{
		{at: 0, first: true, device: true, offset: 7, length: 10},
		{at: 1, first: true, file: 0, offset: 100, length: pieceBytes}, {at: 1, file: 0, offset: 100 + pieceBytes, length: pieceBytes},
		{at: 1, file: 0, offset: 100 + 2*pieceBytes, length: 1},
		{at: 2, first: true, file: 1, length: 5}, {at: 3, first: true, file: 2, length: pieceBytes},
	}, got)
}
