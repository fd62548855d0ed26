package directory_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/liststore"
)

func TestAccessListsGoWithTheEntry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog")
	d, err := directory.Open(path, 0)
	require.NoError(t, err)
	list := func(image, file string) *accesslist.List {
		return &accesslist.List{Image: image, Platform: "linux/amd64", Recorded: time.Unix(1, 0).UTC(),
			Files: []accesslist.FileRange{{DiffID: digest.FromString("layer"), Path: file, Length: 1}}}
	}
	node := liststore.Open(directory.AccessLists(path))
	find := func(image string) []*accesslist.List {
		lists, problems, err := node.Lists(t.Context(), image)
		require.NoError(t, problems)
		if errdefs.IsNotFound(err) {
			return nil
		}
		require.NoError(t, err)
		return lists
	}
	require.Empty(t, find("a:1"))
	require.NoError(t, d.PublishAccessLists(t.Context(), "one", []*accesslist.List{list("a:1", "x"), list("b:1", "x")}))
	require.NoError(t, d.PublishAccessLists(t.Context(), "one.more", []*accesslist.List{list("c:1", "x")}))
	require.Equal(t, []*accesslist.List{list("a:1", "x")}, find("a:1"))
	require.NoError(t, d.PublishAccessLists(t.Context(), "one", []*accesslist.List{list("a:1", "y")}))
	require.Equal(t, []*accesslist.List{list("a:1", "y")}, find("a:1"))
	require.Empty(t, find("b:1"), "not among them any more")
	require.NoError(t, d.Withdraw(t.Context(), "one"))
	require.Empty(t, find("a:1"))
	require.Len(t, find("c:1"), 1, "the lists of others stay")
	require.NoError(t, d.Withdraw(t.Context(), "one"))
	require.ErrorIs(t, d.PublishAccessLists(t.Context(), "../one", nil), errdefs.ErrInvalidArgument)
	require.ErrorIs(t, d.PublishAccessLists(t.Context(), "one", []*accesslist.List{list("a:1", "../x")}), errdefs.ErrInvalidArgument)
}
