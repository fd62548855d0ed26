package fsmount_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
)

// attach makes a file system with the file "hello" and attaches it read-only.
func attach(t *testing.T, fs fsmount.FileSystem) device.Loop {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	tree, image := filepath.Join(dir, "tree"), filepath.Join(dir, "image")
	require.NoError(t, os.Mkdir(tree, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "hello"), []byte("hello"), 0o600))
	require.NoError(t, unix.Mknod(filepath.Join(tree, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	command := exec.CommandContext(t.Context(), "mkfs.erofs", image, tree)
	if fs == fsmount.Ext4 {
		command = exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-d", tree, image, "4M")
	}
	if _, err := exec.LookPath(command.Args[0]); err != nil {
		t.Skip("needs " + command.Args[0])
	}
	out, err := command.CombinedOutput()
	require.NoError(t, err, string(out))
	return attachFile(t, image)
}

func attachFile(t *testing.T, image string) device.Loop {
	t.Helper()
	loop, err := device.AttachLoop(t.Context(), image, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.Background(), loop)) })
	return loop
}

func TestMount(t *testing.T) {
	for _, fs := range []fsmount.FileSystem{fsmount.EROFS, fsmount.Ext4} {
		t.Run(string(fs), func(t *testing.T) {
			loop := attach(t, fs)
			target := t.TempDir()
			require.NoError(t, fsmount.Mount(loop.Path, target, fs))
			t.Cleanup(func() { _ = fsmount.Unmount(target) })

			number, err := device.Number(loop.Path)
			require.NoError(t, err)
			at, err := fsmount.At(target)
			require.NoError(t, err)
			require.Len(t, at, 1)
			require.Equal(t, number, at[0].Device)
			require.Equal(t, string(fs), at[0].Type)
			require.Equal(t, target, at[0].Target)
			require.True(t, at[0].ReadOnly)

			got, err := os.ReadFile(filepath.Join(target, "hello"))
			require.NoError(t, err)
			require.Equal(t, "hello", string(got))
			err = os.WriteFile(filepath.Join(target, "hello"), nil, 0o600)
			require.ErrorIs(t, err, unix.EROFS)
			null, err := os.OpenFile(filepath.Join(target, "null"), os.O_RDONLY, 0)
			require.NoError(t, err, "device nodes must work, see the package comment")
			require.NoError(t, null.Close())

			require.ErrorIs(t, device.DetachLoop(t.Context(), loop), blockdev.ErrInUse)
			require.NoError(t, fsmount.Unmount(target))
			require.NoError(t, fsmount.Unmount(target), "unmounting again is no error")
			at, err = fsmount.At(target)
			require.NoError(t, err)
			require.Empty(t, at)
		})
	}
}

func TestUnmountInUse(t *testing.T) {
	loop := attach(t, fsmount.EROFS)
	target := t.TempDir()
	require.NoError(t, fsmount.Mount(loop.Path, target, fsmount.EROFS))
	f, err := os.Open(filepath.Join(target, "hello"))
	require.NoError(t, err)
	require.ErrorIs(t, fsmount.Unmount(target), blockdev.ErrInUse)
	require.NoError(t, f.Close())
	require.NoError(t, fsmount.Unmount(target))
}

func TestStackAndBelow(t *testing.T) {
	lower, upper := attach(t, fsmount.EROFS), attach(t, fsmount.EROFS)
	dir := t.TempDir()
	target := filepath.Join(dir, "d")
	require.NoError(t, os.Mkdir(target, 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d2"), 0o700))
	for _, loop := range []device.Loop{lower, upper} {
		require.NoError(t, fsmount.Mount(loop.Path, target, fsmount.EROFS))
	}
	at, err := fsmount.At(target)
	require.NoError(t, err)
	require.Len(t, at, 2)
	top, err := device.Number(upper.Path)
	require.NoError(t, err)
	require.Equal(t, top, at[1].Device)
	below, err := fsmount.Below(dir)
	require.NoError(t, err)
	require.Len(t, below, 2)
	below, err = fsmount.Below(filepath.Join(dir, "d2"))
	require.NoError(t, err)
	require.Empty(t, below)

	require.NoError(t, os.Symlink(dir, dir+"-link"))
	at, err = fsmount.At(filepath.Join(dir+"-link", "d"))
	require.NoError(t, err)
	require.Len(t, at, 2, "the path of a mount may be asked for through a link")
	for range 2 {
		require.NoError(t, fsmount.Unmount(target))
	}
}

func TestMountRefuses(t *testing.T) {
	loop := attach(t, fsmount.EROFS)
	dir := t.TempDir()
	for _, tc := range []struct {
		name, device, target string
		fs                   fsmount.FileSystem
		want                 error
	}{
		{"unknown file system", loop.Path, dir, "xfs", blockdev.ErrInvalid},
		{"relative target", loop.Path, "dir", fsmount.EROFS, blockdev.ErrInvalid},
		{"no target", loop.Path, dir + "/none", fsmount.EROFS, blockdev.ErrNotFound},
		{"no device", dir + "/none", dir, fsmount.EROFS, blockdev.ErrNotFound},
		{"other file system on the device", loop.Path, dir, fsmount.Ext4, unix.EINVAL},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.ErrorIs(t, fsmount.Mount(tc.device, tc.target, tc.fs), tc.want)
			at, err := fsmount.At(dir)
			require.NoError(t, err)
			require.Empty(t, at)
		})
	}
}
