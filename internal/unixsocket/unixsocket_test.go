package unixsocket_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

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
