package fsmount_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
)

func TestWritable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 16<<20))
	loop, user, err := device.AttachLoopWhileUsed(t.Context(), image, device.LoopOptions{})
	require.NoError(t, err)

	_, err = fsmount.Writable(loop.Path, fsmount.Ext4)
	require.Error(t, err, "a blank device")
	_, err = fsmount.Writable(loop.Path, "nofs")
	require.ErrorIs(t, err, blockdev.ErrUnsupported)
	out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", loop.Path).CombinedOutput()
	require.NoError(t, err, string(out))

	for i := range 2 {
		root, err := fsmount.Writable(loop.Path, fsmount.Ext4)
		require.NoError(t, err)
		dir := fmt.Sprintf("/proc/self/fd/%d", root.Fd())
		if i == 0 {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o600))
		}
		got, err := os.ReadFile(filepath.Join(dir, "file"))
		require.NoError(t, err)
		require.Equal(t, "kept", string(got))
		require.NoError(t, root.Close())
	}

	// The last user takes the device along.
	require.NoError(t, user.Close())
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		left, err := device.FindLoops(image)
		require.NoError(c, err)
		require.Empty(c, left)
	}, 10*time.Second, 10*time.Millisecond)
}
