package loopdev_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/loopdev"
)

// store is a driver on a file system that cannot share blocks between files.
type store struct {
	*testing.T
	*loopdev.Driver
	dir  string
	data []byte
}

const diskBytes = 8 * mib

// newStore has a volume "v" of diskBytes, written through its device, and the volume snapshot "s" of it.
func newStore(t *testing.T) *store {
	t.Helper()
	return newStoreAt(t, filepath.Join(filesystem(t, "ext4", 64*mib, "-m", "0"), "loop"))
}

func newStoreAt(t *testing.T, dir string) *store {
	t.Helper()
	s := &store{T: t, Driver: open(t, dir), dir: dir, data: bytes.Repeat([]byte("0123456789abcdef"), diskBytes/16)}
	_, err := s.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: diskBytes})
	require.NoError(t, err)
	s.write("v", s.data)
	_, err = s.CreateVolumeSnapshot(t.Context(), "s", "v")
	require.NoError(t, err)
	return s
}

func (s *store) volume(name string) string { return filepath.Join(s.dir, "volumes", name, "disk") }

func (s *store) snapshot(name string) string { return filepath.Join(s.dir, "snapshots", name, "disk") }

func (s *store) restore(name string) {
	s.Helper()
	v, err := s.CreateVolume(s.Context(), blockdev.CreateVolumeRequest{Name: name, SourceVolumeSnapshotID: "s"})
	require.NoError(s, err)
	require.EqualValues(s, diskBytes, v.SizeBytes)
}

func (s *store) attach(name string, readonly bool) blockdev.Device {
	s.Helper()
	dev, err := s.Attach(s.Context(), name, blockdev.AttachOptions{ReadOnly: readonly})
	require.NoError(s, err)
	require.Equal(s, readonly, dev.ReadOnly)
	return dev
}

// write attaches a volume for writing, writes to its begin, and detaches it.
func (s *store) write(name string, data []byte) {
	s.Helper()
	dev := s.attach(name, false)
	f, err := os.OpenFile(dev.Path, os.O_WRONLY|os.O_SYNC, 0)
	require.NoError(s, err)
	_, err = f.Write(data)
	require.NoError(s, errors.Join(err, f.Close()))
	require.NoError(s, s.Detach(s.Context(), name))
}

// expect compares a file or device with what the volume held first, changed at its begin.
func (s *store) expect(path string, begin string) {
	s.Helper()
	got, err := os.ReadFile(path)
	require.NoError(s, err)
	require.True(s, bytes.Equal(append([]byte(begin), s.data[len(begin):]...), got), "%s: %q…", path, got[:min(len(got), 32)])
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st
}

func sameFile(t *testing.T, one, two string) bool {
	t.Helper()
	a, b := stat(t, one), stat(t, two)
	return a.Dev == b.Dev && a.Ino == b.Ino
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// One file serves a volume, its snapshot and the volumes of that, until one of them is written to.
func TestCopiedOnlyForWriting(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"a", "b"} {
		s.restore(name)
		require.True(t, sameFile(t, s.snapshot("s"), s.volume(name)))
	}
	require.True(t, sameFile(t, s.snapshot("s"), s.volume("v")))
	require.EqualValues(t, 0o400, stat(t, s.snapshot("s")).Mode&0o777)

	a, b := s.attach("a", true), s.attach("b", true)
	require.NotEqual(t, a.Path, b.Path)
	s.expect(a.Path, "")
	s.expect(b.Path, "")
	all, err := s.Attached(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]blockdev.Device{"a": a, "b": b}, all, "each has its own of the devices of one file")
	require.NoError(t, s.Detach(t.Context(), "b"))
	s.expect(a.Path, "")

	s.write("b", []byte("changed in b"))
	require.False(t, sameFile(t, s.snapshot("s"), s.volume("b")))
	s.expect(s.volume("b"), "changed in b")
	s.expect(a.Path, "")
	s.expect(s.snapshot("s"), "")
	own := stat(t, s.volume("b")).Ino
	s.write("b", []byte("again"))
	require.Equal(t, own, stat(t, s.volume("b")).Ino, "it is copied once")

	s.write("v", []byte("changed at the source"))
	require.False(t, sameFile(t, s.snapshot("s"), s.volume("v")))
	s.expect(s.volume("v"), "changed at the source")
	s.expect(a.Path, "")
	s.expect(s.snapshot("s"), "")

	require.NoError(t, s.DeleteVolumeSnapshot(t.Context(), "s"))
	s.expect(a.Path, "")
	require.NoError(t, s.Detach(t.Context(), "a"))
	last := stat(t, s.volume("a")).Ino
	s.write("a", []byte("alone"))
	require.Equal(t, last, stat(t, s.volume("a")).Ino, "nobody else has its file any more")
	require.EqualValues(t, 0o600, stat(t, s.volume("a")).Mode&0o777)
}

func TestLargerVolumeIsCopied(t *testing.T) {
	s := newStore(t)
	v, err := s.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "large", SourceVolumeSnapshotID: "s", SizeBytes: 2 * diskBytes})
	require.NoError(t, err)
	require.EqualValues(t, 2*diskBytes, v.SizeBytes)
	require.False(t, sameFile(t, s.snapshot("s"), s.volume("large")))
	s.expect(s.snapshot("s"), "")
	got, err := os.ReadFile(s.volume("large"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(append(bytes.Clone(s.data), make([]byte, diskBytes)...), got))
}

// A file that somebody else has a writable device of is copied, also if that device refuses writes just now.
func TestFileThatOthersMayWriteIsCopied(t *testing.T) {
	s := newStore(t)
	s.write("v", []byte("own"))
	other, err := device.AttachLoop(t.Context(), s.volume("v"), device.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := device.SetReadOnly(other.Path, false)
		require.NoError(t, errors.Join(err, device.DetachLoop(context.Background(), other)))
	})
	for name, readonly := range map[string]bool{"writable": false, "refuses": true} {
		_, err := device.SetReadOnly(other.Path, readonly)
		require.NoError(t, err)
		_, err = s.CreateVolumeSnapshot(t.Context(), name, "v")
		require.NoError(t, err)
		require.False(t, sameFile(t, s.snapshot(name), s.volume("v")))
		s.expect(s.snapshot(name), "own")
	}
}

// The user attaches the file of a volume snapshot by its path. It stays attached when the volume snapshot is deleted.
func TestFileWhoseNameIsGoneIsCopied(t *testing.T) {
	s := newStore(t)
	require.NoError(t, s.DeleteVolume(t.Context(), "v"))
	path := s.snapshot("s")
	dev := s.attach(path, true)
	s.restore("a")
	require.NoError(t, s.DeleteVolumeSnapshot(t.Context(), "s"))
	require.EqualValues(t, 1, stat(t, s.volume("a")).Nlink)
	s.write("a", []byte("changed"))
	s.expect(s.volume("a"), "changed")
	f, err := os.Open(dev.Path)
	require.NoError(t, err)
	// What the file has, not what somebody else read before.
	require.NoError(t, errors.Join(unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0), f.Close()))
	s.expect(dev.Path, "")
	require.NoError(t, s.Detach(t.Context(), path))
}

func TestOtherFileSystemIsCopiedTo(t *testing.T) {
	dir := filepath.Join(filesystem(t, "ext4", 64*mib), "loop")
	at := filepath.Join(dir, "snapshots")
	require.NoError(t, os.MkdirAll(at, 0o700))
	require.NoError(t, unix.Mount("snapshots", at, "tmpfs", 0, "size=32m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(at, 0)) })
	s := newStoreAt(t, dir)
	s.restore("a")
	for _, path := range []string{s.snapshot("s"), s.volume("a")} {
		require.EqualValues(t, 1, stat(t, path).Nlink)
		s.expect(path, "")
	}
}

// What an earlier driver left, which copied always, is used as it is, and shared from then on.
func TestDirectoryOfCopies(t *testing.T) {
	s := newStore(t)
	s.restore("a")
	require.NoError(t, s.Close())
	for _, path := range []string{s.snapshot("s"), s.volume("a"), s.volume("v")} {
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.WriteFile(path, s.data, 0o600))
	}
	s.Driver = open(t, s.dir)
	before := stat(t, s.volume("a")).Ino
	s.write("a", []byte("own"))
	require.Equal(t, before, stat(t, s.volume("a")).Ino, "it was its own already")
	s.expect(s.snapshot("s"), "")
	s.restore("b")
	require.True(t, sameFile(t, s.snapshot("s"), s.volume("b")))
	s.expect(s.attach("b", true).Path, "")
}

// unchanged: the volume "a" shares its file as before, nothing lies about, and nothing is attached.
func (s *store) unchanged() {
	s.Helper()
	require.True(s, sameFile(s.T, s.snapshot("s"), s.volume("a")))
	require.Equal(s, []string{"a", "v"}, names(s.T, filepath.Join(s.dir, "volumes")))
	require.Empty(s, names(s.T, filepath.Join(s.dir, "attachments")))
	all, err := s.Attached(s.Context())
	require.NoError(s, err)
	require.Empty(s, all)
}

func TestNoSpaceForWriting(t *testing.T) {
	s := newStore(t)
	s.restore("a")
	fill, err := os.Create(filepath.Join(s.dir, "fill"))
	require.NoError(t, err)
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(s.dir, &st))
	require.NoError(t, unix.Fallocate(int(fill.Fd()), 0, 0, int64(st.Bfree)*st.Bsize-diskBytes/2))
	require.NoError(t, fill.Close())
	_, err = s.Attach(t.Context(), "a", blockdev.AttachOptions{})
	require.ErrorIs(t, err, blockdev.ErrNoSpace)
	require.ErrorContains(t, err, "copy it for writing")
	s.unchanged()
	s.expect(s.attach("a", true).Path, "")
	require.NoError(t, s.Detach(t.Context(), "a"))
	require.NoError(t, os.Remove(fill.Name()))
	s.write("a", []byte("changed"))
	s.expect(s.volume("a"), "changed")
	s.expect(s.snapshot("s"), "")
}

func TestCopyingForWritingIsCancelled(t *testing.T) {
	s := newStore(t)
	s.restore("a")
	ctx, cancel := context.WithCancel(t.Context())
	s.CrashAt(func(step string) {
		if step == "begun" {
			cancel()
		}
	})
	_, err := s.Attach(ctx, "a", blockdev.AttachOptions{})
	require.ErrorIs(t, err, context.Canceled)
	s.unchanged()
	s.expect(s.volume("a"), "")
}

// Variables for the process that is killed, see TestKilled.
const (
	envDir       = "LOOPDEV_TEST_DIR"
	envOperation = "LOOPDEV_TEST_OPERATION"
	envStep      = "LOOPDEV_TEST_STEP"
)

func operations() map[string]func(context.Context, *loopdev.Driver) error {
	return map[string]func(context.Context, *loopdev.Driver) error{
		"freeze": func(ctx context.Context, d *loopdev.Driver) error {
			_, err := d.CreateVolumeSnapshot(ctx, "second", "v")
			return err
		},
		"restore": func(ctx context.Context, d *loopdev.Driver) error {
			_, err := d.CreateVolume(ctx, blockdev.CreateVolumeRequest{Name: "new", SourceVolumeSnapshotID: "s"})
			return err
		},
		"write": func(ctx context.Context, d *loopdev.Driver) error {
			_, err := d.Attach(ctx, "a", blockdev.AttachOptions{})
			return err
		},
	}
}

// TestKilledProcess does one operation and kills itself between two steps of it.
func TestKilledProcess(t *testing.T) {
	if os.Getenv(envDir) == "" {
		t.Skip("part of TestKilled")
	}
	last, err := strconv.Atoi(os.Getenv(envStep))
	require.NoError(t, err)
	d, err := loopdev.Open(os.Getenv(envDir))
	require.NoError(t, err)
	step := 0
	d.CrashAt(func(string) {
		if step++; step == last {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // until it is delivered
		}
	})
	require.NoError(t, operations()[os.Getenv(envOperation)](t.Context(), d))
}

// Whenever the process is killed, what was there holds what it held, what was made is whole or not there, and the
// operation can be repeated.
func TestKilled(t *testing.T) {
	for name, operation := range operations() {
		t.Run(name, func(t *testing.T) {
			steps := 0
			for step := 1; killed(t, name, step, operation); step++ {
				steps++
			}
			require.GreaterOrEqual(t, steps, 3, "steps at which it was killed")
		})
	}
}

func killed(t *testing.T, name string, step int, operation func(context.Context, *loopdev.Driver) error) (was bool) {
	t.Helper()
	t.Run(strconv.Itoa(step), func(t *testing.T) {
		s := newStore(t)
		s.restore("a")
		require.NoError(t, s.Close())
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledProcess$") //nolint:gosec // this test itself
		cmd.Env = append(os.Environ(), envDir+"="+s.dir, envOperation+"="+name, envStep+"="+strconv.Itoa(step))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if was = errors.As(err, &exit) && exit.ExitCode() == -1; !was {
			require.NoError(t, err, string(out))
		}
		s.Driver = open(t, s.dir)
		for _, kind := range []string{"volumes", "snapshots"} {
			for _, object := range names(t, filepath.Join(s.dir, kind)) {
				require.NotEqual(t, byte('.'), object[0], "what was left must be gone")
				require.ElementsMatch(t, []string{"disk", "meta.json"}, names(t, filepath.Join(s.dir, kind, object)))
				s.expect(filepath.Join(s.dir, kind, object, "disk"), "")
			}
		}
		require.NoError(t, operation(t.Context(), s.Driver), "again")
		if name != "write" {
			_, err := s.Attach(t.Context(), "a", blockdev.AttachOptions{})
			require.NoError(t, err)
		}
		s.write("a", []byte("changed"))
		s.write("v", []byte("changed too"))
		s.expect(s.volume("a"), "changed")
		s.expect(s.snapshot("s"), "")
		require.Subset(t, []string{"s", "second"}, names(t, filepath.Join(s.dir, "snapshots")))
		require.Subset(t, []string{"a", "new", "v"}, names(t, filepath.Join(s.dir, "volumes")))
	})
	return was
}
