package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/readahead/accesslist"
)

func accessList(image, platform, path string) *accesslist.List {
	return &accesslist.List{
		Image: image, Platform: platform, Recorded: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), Disk: digest.FromString("disk"),
		Metadata: []accesslist.Range{{Offset: 4096, Length: 8192}},
		Files:    []accesslist.FileRange{{DiffID: digest.FromString("layer"), Path: path, Length: 10}},
	}
}

func accessLists(t *testing.T, s Full) {
	ctx := t.Context()
	create := func(name string) (id, version string) {
		obj, err := s.Create(ctx, Example(name))
		require.NoError(t, err)
		return obj.ID, obj.ResourceVersion
	}
	one, version := create("one")
	other, _ := create("one.more") // the ID of which begins as the first one's does
	require.ErrorIs(t, s.PutAccessList(ctx, "none", accessList("a:1", "linux/amd64", "x")), errdefs.ErrNotFound)
	require.ErrorIs(t, s.PutAccessList(ctx, one, accessList("a:1", "linux/amd64", "../x")), errdefs.ErrInvalidArgument)
	none, err := s.AccessLists(ctx, one)
	require.NoError(t, err)
	require.Empty(t, none)

	second, first := accessList("b:1", "linux/amd64", "x"), accessList("a:1", "linux/arm64", "x")
	for _, l := range []*accesslist.List{second, first, accessList("a:1", "linux/amd64", "old"), accessList("a:1", "linux/amd64", "new")} {
		require.NoError(t, s.PutAccessList(ctx, one, l))
	}
	require.NoError(t, s.PutAccessList(ctx, other, second))
	got, err := s.AccessLists(ctx, one)
	require.NoError(t, err)
	require.Equal(t, []*accesslist.List{accessList("a:1", "linux/amd64", "new"), first, second}, got)

	on := func(disk digest.Digest, image string) ([]*accesslist.List, []string) {
		lists, ids, err := s.AccessListsOn(ctx, disk, image)
		require.NoError(t, err)
		return lists, ids
	}
	found, ids := on(Example("one").Status.Identity.IndexDigest, "a:1")
	require.Equal(t, []*accesslist.List{accessList("a:1", "linux/amd64", "new"), first}, found)
	require.Equal(t, []string{one, other}, ids, "both have that disk")
	found, ids = on(digest.FromString("another disk"), "a:1")
	require.Empty(t, found)
	require.Empty(t, ids)

	// They are no change of the object.
	obj, err := s.Get(ctx, "one")
	require.NoError(t, err)
	require.Equal(t, version, obj.ResourceVersion)

	require.NoError(t, s.Delete(ctx, "one", version))
	got, err = s.AccessLists(ctx, one)
	require.NoError(t, err)
	require.Empty(t, got, "they go with the image snapshot")
	require.ErrorIs(t, s.PutAccessList(ctx, one, first), errdefs.ErrNotFound)
	got, err = s.AccessLists(ctx, other)
	require.NoError(t, err)
	require.Len(t, got, 1, "those of others stay")

	// Another one with the same ID would not have them.
	create("one")
	got, err = s.AccessLists(ctx, one)
	require.NoError(t, err)
	require.Empty(t, got)
}

func accessListsAreBounded(t *testing.T, s Full) {
	ctx := t.Context()
	obj, err := s.Create(ctx, Example("one"))
	require.NoError(t, err)
	one := obj.ID
	for i := range store.MaxAccessLists {
		require.NoError(t, s.PutAccessList(ctx, one, accessList(fmt.Sprintf("i:%d", i), "linux/amd64", "x")))
	}
	require.ErrorIs(t, s.PutAccessList(ctx, one, accessList("a:1", "linux/amd64", "x")), errdefs.ErrResourceExhausted)
	require.NoError(t, s.PutAccessList(ctx, one, accessList("i:0", "linux/amd64", "y")), "replacing one is no more")
}
