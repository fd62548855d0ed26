package blockdevtest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/internal/durable"
)

// The driver of docs/adding-a-driver.md passes the suite, run as the page says.
func TestExample(t *testing.T) {
	needRoot(t)
	dirs := map[blockdev.Attacher]string{}
	open := func(dir string) blockdev.Attacher {
		d := &exampleDriver{dir: dir}
		dirs[d] = dir
		return d
	}
	blockdevtest.Suite(t, blockdevtest.Config{
		New:    func(t *testing.T) blockdev.Attacher { return open(t.TempDir()) },
		Reopen: func(_ *testing.T, old blockdev.Attacher) blockdev.Attacher { return open(dirs[old]) },
	})
}

// What the suite cannot do, a crash in the middle of a copy: the unfinished volume is listed and not attached, the same
// request makes it whole, another is refused, and deleting it by what the list says leaves nothing.
func TestExampleAfterCrash(t *testing.T) {
	needRoot(t)
	ctx, dir := t.Context(), t.TempDir()
	d := &exampleDriver{dir: dir}
	source, err := d.CreateVolume(ctx, blockdev.CreateVolumeRequest{Name: "source", SizeBytes: 1 << 20})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "source.volume"), []byte("content"), 0o600))
	require.NoError(t, os.Truncate(filepath.Join(dir, "source.volume"), 1<<20))
	s, err := d.CreateVolumeSnapshot(ctx, "s", source.ID)
	require.NoError(t, err)
	for _, name := range []string{"repeated", "deleted"} {
		require.NoError(t, durable.Write(filepath.Join(dir, name+".volume.json"), record{Name: name, Source: s.ID, SizeBytes: s.SizeBytes}))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".volume"), []byte("con"), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "repeated.volume.json"+durable.TempSuffix), []byte("{"), 0o600))

	list, err := d.ListVolumes(ctx)
	require.NoError(t, err)
	require.Len(t, list, 3)
	_, err = d.Attach(ctx, "repeated", blockdev.AttachOptions{})
	require.ErrorIs(t, err, blockdev.ErrNotReady)
	_, err = d.CreateVolume(ctx, blockdev.CreateVolumeRequest{Name: "repeated", SizeBytes: 1 << 20})
	require.ErrorIs(t, err, blockdev.ErrExists)
	req := blockdev.CreateVolumeRequest{Name: "repeated", SourceVolumeSnapshotID: s.ID}
	v, err := d.CreateVolume(ctx, req)
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(dir, "repeated.volume"))
	require.NoError(t, err)
	require.Equal(t, append([]byte("content"), make([]byte, 1<<20-len("content"))...), got)

	require.NoError(t, d.DeleteVolumeSnapshot(ctx, s.ID))
	again, err := d.CreateVolume(ctx, req)
	require.NoError(t, err, "what was made is found without what it was made from")
	require.Equal(t, v, again)
	for _, v := range list {
		require.NoError(t, d.DeleteVolume(ctx, v.ID))
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
}
