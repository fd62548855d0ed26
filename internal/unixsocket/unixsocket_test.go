package unixsocket_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/unixsocket"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s")
	l, err := unixsocket.Listen(t.Context(), path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())

	_, err = unixsocket.Listen(t.Context(), path)
	require.ErrorContains(t, err, "somebody listens on it")

	l.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	require.FileExists(t, path)
	again, err := unixsocket.Listen(t.Context(), path)
	require.NoError(t, err, "what a crash left is taken away")
	require.NoError(t, again.Close())

	require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
	_, err = unixsocket.Listen(t.Context(), path)
	require.ErrorContains(t, err, "no socket")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "x", string(data))
}

func TestPathIsTooLong(t *testing.T) {
	longest := "/" + strings.Repeat("a", 106)
	require.NoError(t, unixsocket.CheckPath(longest))
	_, err := unixsocket.Listen(t.Context(), longest+"bc")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, "has 109 bytes, 2 more than the 107")

	// What is just short enough for the check is so for the kernel.
	dir, err := os.MkdirTemp("/tmp", "s")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	l, err := unixsocket.Listen(t.Context(), dir+"/"+strings.Repeat("a", 106-len(dir)))
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

// TestSocketIsPrivateAtOnce listens with a mask that would let others in.
func TestSocketIsPrivateAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "s")
	mask := unix.Umask(0)
	defer unix.Umask(mask)
	l, err := unixsocket.Listen(t.Context(), path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.Equal(t, 0, unix.Umask(0), "the mask is given back")
	require.NoError(t, l.Close())
}
