package liststore_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/liststore"
)

func write(t *testing.T, dir, name, image string, recorded time.Time, path string) {
	t.Helper()
	l := &accesslist.List{Image: image, Platform: "linux/amd64", Recorded: recorded,
		Files: []accesslist.FileRange{{DiffID: digest.FromString("layer"), Path: path, Length: 1}}}
	data, err := l.Encode()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
}

func TestLists(t *testing.T) {
	const app, other = "docker.io/library/app:1", "docker.io/library/other:1"
	dir := t.TempDir()
	d := liststore.Open(filepath.Join(dir, "missing"))
	_, problems, err := d.Lists(t.Context(), app)
	require.True(t, errdefs.IsNotFound(err), err)
	require.NoError(t, problems)

	d = liststore.Open(dir)
	now := time.Unix(1_700_000_000, 0).UTC()
	write(t, dir, "a", app, now, "old")
	write(t, dir, "b", other, now, "other")
	write(t, dir, "c", app, now.Add(time.Hour), "new")
	for range 2 {
		lists, problems, err := d.Lists(t.Context(), app)
		require.NoError(t, err)
		require.NoError(t, problems)
		require.Len(t, lists, 2)
		require.Equal(t, "new", lists[0].Files[0].Path)
		require.Equal(t, "old", lists[1].Files[0].Path)
	}
	// What changes is seen, whatever image it was of.
	write(t, dir, "b", app, now.Add(2*time.Hour), "newest and longer")
	require.NoError(t, os.Remove(filepath.Join(dir, "a")))
	lists, _, err := d.Lists(t.Context(), app)
	require.NoError(t, err)
	require.Len(t, lists, 2)
	require.Equal(t, "newest and longer", lists[0].Files[0].Path)
	_, _, err = d.Lists(t.Context(), other)
	require.True(t, errdefs.IsNotFound(err), err)
}

// Whatever else is in the directory spoils nothing, and is named.
func TestOtherFiles(t *testing.T) {
	dir := t.TempDir()
	const app = "docker.io/library/app:1"
	write(t, dir, "list", app, time.Unix(1, 0), "x")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "junk"), []byte("junk"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "large"), nil, 0o600))
	require.NoError(t, os.Truncate(filepath.Join(dir, "large"), 1<<40))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "dir"), 0o700))
	require.NoError(t, os.Symlink("list", filepath.Join(dir, "link")))
	lists, problems, err := liststore.Open(dir).Lists(t.Context(), app)
	require.NoError(t, err)
	require.Len(t, lists, 1)
	require.ErrorContains(t, problems, "junk")
	require.ErrorContains(t, problems, "large")
	require.NotContains(t, problems.Error(), "fifo")
}

func TestPutReplacesTheListOfTheSameImage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lists")
	d := liststore.Open(dir)
	list := func(path string) *accesslist.List {
		return &accesslist.List{Image: "app:1", Platform: "linux/amd64", Recorded: time.Unix(1, 0).UTC(),
			Files: []accesslist.FileRange{{DiffID: digest.FromString("layer"), Path: path, Length: 1}}}
	}
	require.NoError(t, d.Put(list("old")))
	require.NoError(t, d.Put(list("new")))
	write(t, dir, ".half-written", "app:1", time.Unix(2, 0), "hidden")
	lists, problems, err := d.Lists(t.Context(), "app:1")
	require.NoError(t, err)
	require.NoError(t, problems)
	require.Equal(t, []*accesslist.List{list("new")}, lists)
	require.ErrorIs(t, d.Put(list("../x")), errdefs.ErrInvalidArgument)
}
