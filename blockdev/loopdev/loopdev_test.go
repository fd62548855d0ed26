package loopdev_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/loopdev"
)

const mib = 1 << 20

func open(t *testing.T, dir string) *loopdev.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d, err := loopdev.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() {
		all, err := d.Attached(context.Background())
		if err == nil { // else it was closed and opened again
			for id := range all {
				require.NoError(t, d.Detach(context.Background(), id))
			}
		}
		_ = d.Close()
	})
	return d
}

func suite(t *testing.T, dir func(t *testing.T) string) {
	t.Helper()
	at := ""
	blockdevtest.Suite(t, blockdevtest.Config{
		New: func(t *testing.T) blockdev.Attacher {
			at = dir(t)
			return open(t, at)
		},
		Reopen: func(t *testing.T, old blockdev.Attacher) blockdev.Attacher {
			require.NoError(t, old.(*loopdev.Driver).Close())
			return open(t, at)
		},
	})
}

func TestSuite(t *testing.T) {
	suite(t, func(t *testing.T) string { return filepath.Join(t.TempDir(), "loop") })
}

// filesystem makes a file system with mkfs and mounts it.
func filesystem(t *testing.T, kind string, sizeBytes int64, options ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	mkfs := "mkfs." + kind
	if _, err := exec.LookPath(mkfs); err != nil {
		t.Skip("needs " + mkfs)
	}
	image, dir := filepath.Join(t.TempDir(), kind+".img"), t.TempDir()
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, sizeBytes))
	out, err := exec.CommandContext(t.Context(), mkfs, append(append([]string{"-q"}, options...), image)...).CombinedOutput()
	require.NoError(t, err, string(out))
	loop, err := device.AttachLoop(t.Context(), image, device.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.Background(), loop)) })
	require.NoError(t, unix.Mount(loop.Path, dir, kind, 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func TestReflink(t *testing.T) {
	dir := filesystem(t, "xfs", 512*mib, "-m", "reflink=1") // which can share blocks between files
	d := open(t, filepath.Join(dir, "loop"))
	v, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: 64 * mib})
	require.NoError(t, err)
	file := filepath.Join(dir, "loop/volumes/v/disk")
	data := bytes.Repeat([]byte("0123456789abcdef"), 32*mib/16)
	require.NoError(t, os.WriteFile(file, data, 0o600))
	require.NoError(t, os.Truncate(file, 64*mib))
	free := func() uint64 {
		var st unix.Statfs_t
		unix.Sync()
		require.NoError(t, unix.Statfs(dir, &st))
		return st.Bfree * uint64(st.Bsize)
	}
	before := free()
	s, err := d.CreateVolumeSnapshot(t.Context(), "s", v.ID)
	require.NoError(t, err)
	copied, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "w", SourceVolumeSnapshotID: s.ID})
	require.NoError(t, err)
	require.Less(t, before-free(), uint64(4*mib), "two copies of 32 MiB must share their blocks")
	got, err := os.ReadFile(filepath.Join(dir, "loop/volumes/w/disk"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got[:len(data)]))
	require.EqualValues(t, 64*mib, copied.SizeBytes)
	for _, other := range []string{"snapshots/s", "volumes/w"} {
		require.False(t, sameFile(t, file, filepath.Join(dir, "loop", other, "disk")), "nobody has to wait for a copy at the first write")
	}
	t.Run("suite", func(t *testing.T) {
		suite(t, func(t *testing.T) string {
			at, err := os.MkdirTemp(dir, "suite")
			require.NoError(t, err)
			return at
		})
	})
}

func TestCopyKeepsHoles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "loop")
	d := open(t, dir)
	_, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: 1 << 30})
	require.NoError(t, err)
	f, err := os.OpenFile(filepath.Join(dir, "volumes/v/disk"), os.O_WRONLY, 0)
	require.NoError(t, err)
	for _, at := range []int64{0, 500*mib + 4096, 1<<30 - 4096} {
		_, err = f.WriteAt(bytes.Repeat([]byte{7}, 4096), at)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	_, err = d.CreateVolumeSnapshot(t.Context(), "s", "v")
	require.NoError(t, err)
	_, err = d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "w", SourceVolumeSnapshotID: "s", SizeBytes: 2 << 30})
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(dir, "volumes/w/disk"), &st))
	require.EqualValues(t, 2<<30, st.Size)
	require.Less(t, st.Blocks*512, int64(mib))
	got, err := os.Open(filepath.Join(dir, "volumes/w/disk"))
	require.NoError(t, err)
	defer got.Close()
	buf := make([]byte, 8192)
	_, err = got.ReadAt(buf, 500*mib)
	require.NoError(t, err)
	require.Equal(t, append(make([]byte, 4096), bytes.Repeat([]byte{7}, 4096)...), buf)
}

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "loop")
	d := open(t, dir)
	_, err := loopdev.Open(dir)
	require.ErrorIs(t, err, blockdev.ErrInUse)
	for _, name := range []string{"whole", "whole.new"} {
		_, err = d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: mib})
		require.NoError(t, err)
	}
	require.NoError(t, d.Close())

	// What a crash leaves: a volume that is not whole, one that is half deleted, an attachment that is half written.
	for _, left := range []string{"volumes/.new-123/disk", "volumes/.old-x/disk", "snapshots/.new-9/meta.json", "attachments/abc.json.new", "attachments/.new-abc.json"} {
		path := filepath.Join(dir, left)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
	}
	d = open(t, dir)
	for _, kind := range []string{"volumes", "snapshots", "attachments"} {
		entries, err := os.ReadDir(filepath.Join(dir, kind))
		require.NoError(t, err)
		for _, e := range entries {
			require.False(t, strings.HasPrefix(e.Name(), ".") || kind == "attachments", e.Name())
		}
	}
	for _, whole := range []string{"whole", "whole.new"} {
		_, err = d.GetVolume(t.Context(), whole)
		require.NoError(t, err)
	}
}

// brought makes a disk of the user's with some bytes.
func brought(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("user"), mib/4), 0o600))
	return path
}

func TestBroughtFile(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "loop"))
	path := brought(t)
	_, err := d.Attach(t.Context(), path, blockdev.AttachOptions{})
	require.ErrorIs(t, err, blockdev.ErrUnsupported, "never for writing")
	foreign, err := device.AttachLoop(t.Context(), path, device.LoopOptions{Tag: path})
	require.NoError(t, err)
	dev, err := d.Attach(t.Context(), path, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.True(t, dev.ReadOnly)
	require.NotEqual(t, foreign.Path, dev.Path)
	all, err := d.Attached(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]blockdev.Device{path: dev}, all)

	require.ErrorIs(t, d.DeleteVolume(t.Context(), path), blockdev.ErrUnsupported)
	_, err = d.CreateVolumeSnapshot(t.Context(), "s", path)
	require.ErrorIs(t, err, blockdev.ErrUnsupported)
	list, err := d.ListVolumes(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)

	require.NoError(t, os.Remove(path))
	again, err := d.Attach(t.Context(), path, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err, "what is attached can be read also when the file's name is gone")
	require.Equal(t, dev, again)
	require.NoError(t, d.Detach(t.Context(), path))
	_, ok, err := device.LoopAt(foreign.Path)
	require.NoError(t, err)
	require.True(t, ok, "another's loop device of the same file was detached")
	require.NoError(t, device.DetachLoop(t.Context(), foreign))
	_, err = d.Attach(t.Context(), path, blockdev.AttachOptions{ReadOnly: true})
	require.True(t, errdefs.IsNotFound(err), err)
}

func TestBroughtDevice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "loop")
	d := open(t, dir)
	disk, err := device.AttachLoop(t.Context(), brought(t), device.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := device.SetReadOnly(disk.Path, false) // or the next one to get this number is read-only
		require.NoError(t, errors.Join(err, device.DetachLoop(context.Background(), disk)))
	})
	readonly := func() bool {
		ro, err := device.ReadOnly(disk.Path)
		require.NoError(t, err)
		return ro
	}

	used, err := os.OpenFile(disk.Path, os.O_RDONLY|os.O_EXCL, 0)
	require.NoError(t, err)
	_, err = d.Attach(t.Context(), disk.Path, blockdev.AttachOptions{ReadOnly: true})
	require.ErrorIs(t, err, blockdev.ErrInUse)
	require.False(t, readonly(), "a device in use was made read-only")
	require.NoError(t, used.Close())

	dev, err := d.Attach(t.Context(), disk.Path, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.Equal(t, blockdev.Device{Path: disk.Path, ReadOnly: true}, dev)
	require.True(t, readonly())
	require.NoError(t, d.Close())
	d = open(t, dir)
	all, err := d.Attached(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]blockdev.Device{disk.Path: dev}, all)

	// After a reboot the flag is gone.
	_, err = device.SetReadOnly(disk.Path, false)
	require.NoError(t, err)
	all, err = d.Attached(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	_, err = d.Attach(t.Context(), disk.Path, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)

	used, err = os.OpenFile(disk.Path, os.O_RDONLY|os.O_EXCL, 0)
	require.NoError(t, err)
	require.ErrorIs(t, d.Detach(t.Context(), disk.Path), blockdev.ErrInUse)
	require.True(t, readonly())
	require.NoError(t, used.Close())
	require.NoError(t, d.Detach(t.Context(), disk.Path))
	require.False(t, readonly(), "the flag must be given back")

	// A device that was read-only before stays so.
	_, err = device.SetReadOnly(disk.Path, true)
	require.NoError(t, err)
	_, err = d.Attach(t.Context(), disk.Path, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, d.Detach(t.Context(), disk.Path))
	require.True(t, readonly())
}

func TestSnapshotOfVolumeBeingWritten(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "loop"))
	v, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: mib})
	require.NoError(t, err)
	_, err = d.Attach(t.Context(), v.ID, blockdev.AttachOptions{})
	require.NoError(t, err)
	_, err = d.CreateVolumeSnapshot(t.Context(), "s", v.ID)
	require.ErrorIs(t, err, blockdev.ErrInUse)
	require.NoError(t, d.Detach(t.Context(), v.ID))
	_, err = d.Attach(t.Context(), v.ID, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	_, err = d.CreateVolumeSnapshot(t.Context(), "s", v.ID)
	require.NoError(t, err)
	require.NoError(t, d.Detach(t.Context(), v.ID))
}

func TestNoSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("small", dir, "tmpfs", 0, "size=2m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	d := open(t, filepath.Join(dir, "loop"))
	_, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: 3 * mib})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "loop/volumes/v/disk"), bytes.Repeat([]byte{1}, 1536<<10), 0o600))
	_, err = d.CreateVolumeSnapshot(t.Context(), "s", "v")
	require.NoError(t, err)
	_, err = d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "w", SourceVolumeSnapshotID: "s", SizeBytes: 4 * mib})
	require.ErrorIs(t, err, blockdev.ErrNoSpace)
	require.Equal(t, []string{"v"}, names(t, filepath.Join(dir, "loop/volumes")), "a copy that failed leaves nothing")
}
