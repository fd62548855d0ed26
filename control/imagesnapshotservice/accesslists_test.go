package imagesnapshotservice_test

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/imagesnapshot"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/readahead/accesslist"
)

func TestAccessListsOfImageSnapshots(t *testing.T) {
	w := newWorld(t)
	w.create("nightly")
	list := &accesslist.List{
		Image: "docker.io/library/nginx:1.27", Platform: "linux/amd64", Recorded: time.Unix(1000, 0).UTC(), Disk: digest.FromString("disk"),
		Metadata: []accesslist.Range{{Offset: 4096, Length: 4096}},
		Files:    []accesslist.FileRange{{DiffID: digest.FromString("layer"), Path: "a", Length: 10}, {DiffID: digest.FromString("layer"), Path: "b", Length: 20}},
	}
	encoded, err := list.Encode()
	require.NoError(t, err)
	put := func(name string, data []byte) error {
		_, err := w.PutAccessList(t.Context(), &imagesnapshotv1.PutAccessListRequest{NameOrId: name, List: data})
		return err
	}
	require.Equal(t, codes.FailedPrecondition, status.Code(put("nightly", encoded)), "there is no content yet")
	w.put("nightly", func(s *imagesnapshot.ImageSnapshot) {
		s.Status.Images = []imagesnapshot.Image{{Reference: list.Image, Platform: list.Platform}}
	})
	require.NoError(t, put("nightly", encoded))
	require.Equal(t, codes.NotFound, status.Code(put("none", encoded)))
	require.Equal(t, codes.InvalidArgument, status.Code(put("nightly", []byte("no list"))))
	other := *list
	other.Image = "docker.io/library/nginx:1.28"
	encodedOther, err := other.Encode()
	require.NoError(t, err)
	err = put("nightly", encodedOther)
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	require.Contains(t, violations(t, err), "list")

	get := func(req *imagesnapshotv1.ListAccessListsRequest) []*imagesnapshotv1.AccessList {
		resp, err := w.ListAccessLists(t.Context(), req)
		require.NoError(t, err)
		return resp.GetAccessLists()
	}
	got := get(&imagesnapshotv1.ListAccessListsRequest{NameOrId: "nightly", Image: list.Image})
	require.Len(t, got, 1)
	require.Equal(t, encoded, got[0].GetList())
	require.EqualValues(t, 2, got[0].GetFiles())
	require.EqualValues(t, 30, got[0].GetFileBytes())
	require.EqualValues(t, 4096, got[0].GetMetadataBytes())
	require.Equal(t, list.Disk.String(), got[0].GetIndexDigest())
	require.Empty(t, get(&imagesnapshotv1.ListAccessListsRequest{NameOrId: "nightly", Image: "other"}))
	require.Empty(t, get(&imagesnapshotv1.ListAccessListsRequest{NameOrId: "nightly", Summary: true})[0].GetList())
	_, err = w.ListAccessLists(t.Context(), &imagesnapshotv1.ListAccessListsRequest{NameOrId: "none"})
	require.Equal(t, codes.NotFound, status.Code(err))
}
