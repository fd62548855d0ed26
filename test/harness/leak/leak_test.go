package leak_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/leak"
)

func TestBelowFindsEachKindAndNothingElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	found, err := leak.Below(dir)
	require.NoError(t, err)
	require.Empty(t, found)

	// A directory whose name merely begins alike is somebody else's.
	require.NoError(t, os.Mkdir(dir+"x", 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir+"x")) })
	require.NoError(t, unix.Mount("none", dir+"x", "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir+"x", 0)) })

	mnt := filepath.Join(dir, "mnt")
	require.NoError(t, os.Mkdir(mnt, 0o755))
	require.NoError(t, unix.Mount("none", mnt, "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mnt, 0)) })

	img := filepath.Join(dir, "img")
	require.NoError(t, os.WriteFile(img, make([]byte, 4096), 0o600))
	loop, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", img).Output()
	require.NoError(t, err)
	device := strings.TrimSpace(string(loop))
	t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "--detach", device).Run()) })

	child := exec.CommandContext(t.Context(), "sleep", "60")
	child.Dir = dir
	require.NoError(t, child.Start())
	t.Cleanup(func() { require.NoError(t, child.Process.Kill()); _ = child.Wait() })

	found, err = leak.Below(dir)
	require.NoError(t, err)
	require.Len(t, found, 3, "%v", found)
	require.Equal(t, "mount "+mnt, found[0])
	require.Equal(t, "loop device "+filepath.Base(device)+" of "+img, found[1])
	require.Contains(t, found[2], "sleep 60")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, leak.WaitNone(ctx, dir), "mount "+mnt)
	require.NoError(t, leak.WaitNone(t.Context(), filepath.Join(dir, "nothing")))
}

func TestBelowRefusesTheWholeMachine(t *testing.T) {
	for _, dir := range []string{"", "/", "relative"} {
		_, err := leak.Below(dir)
		require.ErrorContains(t, err, "absolute directory")
	}
}
