package fsmount_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
)

func TestBindDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	image, target := filepath.Join(dir, "disk"), filepath.Join(dir, "device")
	require.NoError(t, os.WriteFile(image, make([]byte, 4096), 0o600))
	loop, dev, err := device.AttachLoopWhileUsed(t.Context(), image, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, dev.Close()) })

	require.True(t, errdefs.IsNotFound(fsmount.BindDevice(loop.Path, target)), "there is no file to bind to")
	require.NoError(t, os.WriteFile(target, nil, 0o600))
	require.NoError(t, fsmount.BindDevice(loop.Path, target))
	want, err := device.Number(loop.Path)
	require.NoError(t, err)
	got, err := device.Number(target)
	require.NoError(t, err)
	require.Equal(t, want, got)
	bound, err := fsmount.Bound(loop.Path, want)
	require.NoError(t, err)
	require.Equal(t, []string{target}, bound)

	require.NoError(t, fsmount.Unmount(target))
	bound, err = fsmount.Bound(loop.Path, want)
	require.NoError(t, err)
	require.Empty(t, bound)
	info, err := os.Stat(target)
	require.NoError(t, err)
	require.True(t, info.Mode().IsRegular(), "the file below is back")
	require.True(t, errdefs.IsInvalidArgument(fsmount.BindDevice(loop.Path, "relative")))
}
