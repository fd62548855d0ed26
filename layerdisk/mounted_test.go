package layerdisk_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

func mountedTree(t *testing.T) (string, layerdisk.Identity) {
	t.Helper()
	dir := t.TempDir()
	layerdisktest.Tree(t, dir, layerdisk.FileSystemEROFS, nil, testImages()...)
	_, id, err := layerdisk.ReadMountedIndex(dir)
	require.NoError(t, err)
	return dir, id
}

func TestOpenMounted(t *testing.T) {
	dir, id := mountedTree(t)
	for _, want := range []layerdisk.Identity{id, {}, {UUID: id.UUID}, {IndexDigest: id.IndexDigest}} {
		m, err := layerdisk.OpenMounted(t.Context(), dir, want)
		require.NoError(t, err)
		require.Equal(t, id, m.Identity)
		require.Equal(t, filepath.Join(dir, "l", "3"), m.LayerDir(3))
		require.DirExists(t, m.LayerDir(3))
	}
}

func TestOpenMountedRefuses(t *testing.T) {
	rename := func(t *testing.T, dir, name string) {
		require.NoError(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, "moved")))
	}
	symlink := func(name, target string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			rename(t, dir, name)
			require.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
		}
	}
	missing := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { rename(t, dir, name) }
	}
	file := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			rename(t, dir, name)
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		}
	}
	mounted := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			require.NoError(t, unix.Mount("tmpfs", filepath.Join(dir, name), "tmpfs", 0, ""))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(filepath.Join(dir, name), 0)) })
		}
	}
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		class  error
		want   string
	}{
		{"no index", missing("berth/index.json"), layerdisk.ErrNotLayerDisk, "has no berth/index.json"},
		{"no berth", missing("berth"), layerdisk.ErrNotLayerDisk, "has no berth/index.json"},
		{"berth a link inside", symlink("berth", "moved"), layerdisk.ErrCorrupt, "berth is not a directory"},
		{"berth a link outside", symlink("berth", "/etc"), layerdisk.ErrCorrupt, "berth is not a directory"},
		{"index a link inside", symlink("berth/index.json", "../moved"), layerdisk.ErrCorrupt, "not a regular file"},
		{"index a link outside", symlink("berth/index.json", "/etc/passwd"), layerdisk.ErrCorrupt, "not a regular file"},
		{"index a FIFO", func(t *testing.T, dir string) {
			rename(t, dir, "berth/index.json")
			require.NoError(t, unix.Mkfifo(filepath.Join(dir, "berth/index.json"), 0o644))
		}, layerdisk.ErrCorrupt, "not a regular file"},
		{"index a directory", func(t *testing.T, dir string) {
			rename(t, dir, "berth/index.json")
			require.NoError(t, os.Mkdir(filepath.Join(dir, "berth/index.json"), 0o755))
		}, layerdisk.ErrCorrupt, "not a regular file"},
		{"index huge", func(t *testing.T, dir string) {
			require.NoError(t, os.Truncate(filepath.Join(dir, "berth/index.json"), layerdisk.MaxIndexBytes+1))
		}, layerdisk.ErrCorrupt, "at most"},
		{"index of other content", func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, "berth/index.json"), os.O_APPEND|os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteString(" ")
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, layerdisk.ErrOtherDisk, "digest of its index"},
		{"no layers", missing("l"), layerdisk.ErrCorrupt, "directory l is missing"},
		{"layers a link", symlink("l", "moved"), layerdisk.ErrCorrupt, "l is not a directory"},
		{"layers a file", file("l"), layerdisk.ErrCorrupt, "l is not a directory"},
		{"layers another mount", mounted("l"), layerdisk.ErrCorrupt, "something is mounted there"},
		{"layer missing", missing("l/2"), layerdisk.ErrCorrupt, "directory l/2 is missing"},
		{"layer a link to another", symlink("l/2", "1"), layerdisk.ErrCorrupt, "l/2 is not a directory"},
		{"layer a link outside", symlink("l/2", "/etc"), layerdisk.ErrCorrupt, "l/2 is not a directory"},
		{"layer a file", file("l/2"), layerdisk.ErrCorrupt, "l/2 is not a directory"},
		{"layer another mount", mounted("l/2"), layerdisk.ErrCorrupt, "something is mounted there"},
		{"berth another mount", mounted("berth"), layerdisk.ErrCorrupt, "something is mounted there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, id := mountedTree(t)
			tt.change(t, dir)
			_, err := layerdisk.OpenMounted(t.Context(), dir, id)
			require.ErrorIs(t, err, tt.class)
			require.ErrorContains(t, err, tt.want)
		})
	}
	t.Run("another disk", func(t *testing.T) {
		dir, id := mountedTree(t)
		id.UUID = "7d0f5a3e-2c64-4b1b-9a57-c6f2b1c0d9e4"
		_, err := layerdisk.OpenMounted(t.Context(), dir, id)
		require.ErrorIs(t, err, layerdisk.ErrOtherDisk)
	})
	t.Run("nothing there", func(t *testing.T) {
		_, err := layerdisk.OpenMounted(t.Context(), filepath.Join(t.TempDir(), "gone"), layerdisk.Identity{})
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("cancelled", func(t *testing.T) {
		dir, id := mountedTree(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := layerdisk.OpenMounted(ctx, dir, id)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestReadMounted(t *testing.T) {
	dir, _ := mountedTree(t)
	names, err := layerdisk.ReadMountedDir(dir, layerdisk.LayersDir)
	require.NoError(t, err)
	require.Equal(t, []string{"0", "1", "2", "3"}, names)
	data, err := layerdisk.ReadMountedFile(dir, layerdisk.ListingPath(1), 1<<20)
	require.NoError(t, err)
	require.NotEmpty(t, data)
	_, err = layerdisk.ReadMountedFile(dir, layerdisk.ListingPath(1), 3)
	require.ErrorIs(t, err, layerdisk.ErrCorrupt)
	_, err = layerdisk.ReadMountedFile(dir, layerdisk.ListingPath(9), 3)
	require.ErrorIs(t, err, os.ErrNotExist)
	for _, name := range []string{"../" + filepath.Base(dir) + "/berth/index.json", "/etc/passwd"} {
		_, err = layerdisk.ReadMountedFile(dir, name, 1<<20)
		require.Error(t, err, name)
	}
	require.NoError(t, layerdisk.CheckLayerDir(dir, 3))
	require.ErrorIs(t, layerdisk.CheckLayerDir(dir, 4), layerdisk.ErrCorrupt)
}

func TestLayerNames(t *testing.T) {
	require.Equal(t, "l/0", layerdisk.LayerDir(0))
	require.Equal(t, "l/1a", layerdisk.LayerDir(46))
	require.Equal(t, "berth/attrs/zz", layerdisk.ListingPath(36*36-1))
	for n := range 5000 {
		got, err := layerdisk.LayerNumber(filepath.Base(layerdisk.LayerDir(n)))
		require.NoError(t, err)
		require.Equal(t, n, got)
	}
	for _, name := range []string{"", "00", "01", "1A", "-1", "+1", ".", "..", "1/2", " 1", "zzzzzzzzzzzz", "1_0"} {
		_, err := layerdisk.LayerNumber(name)
		require.Error(t, err, name)
	}
}
