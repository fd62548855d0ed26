package nodeservice_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/control/nodeservice"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
	"berth.dev/berth/readahead"
)

type runs []readahead.Run

func (r runs) Runs() []readahead.Run { return r }

func TestReadAheadOverTheWire(t *testing.T) {
	s, _, _ := newService(t)
	st, err := serve(t, s).Status(t.Context(), &controlv1.StatusRequest{})
	require.NoError(t, err)
	require.Empty(t, st.GetReadAhead(), "nothing reads ahead")

	wanted := time.Unix(1_700_000_000, 0).UTC()
	s, _, _ = newService(t, func(c *nodeservice.Config) {
		c.ReadAhead = runs{{
			Image: "docker.io/library/app:1", Disk: "base", DiskUUID: "u", Listed: true, Result: readahead.ResultFailed, Reason: "input/output error",
			TotalBytes: 9, Bytes: 8, Pieces: 7, Skipped: 6, Wanted: wanted, Took: 2 * time.Second,
		}}
	})
	st, err = serve(t, s).Status(t.Context(), &controlv1.StatusRequest{})
	require.NoError(t, err)
	require.Len(t, st.GetReadAhead(), 1)
	h := st.GetReadAhead()[0]
	require.Equal(t, "docker.io/library/app:1 base u failed input/output error",
		h.GetImage()+" "+h.GetDisk()+" "+h.GetDiskUuid()+" "+enumword.Of(h.GetState())+" "+h.GetReason())
	require.True(t, h.GetHasAccessList())
	require.Equal(t, []int64{9, 8, 7, 6, 4}, []int64{h.GetTotalBytes(), h.GetBytes(), h.GetReads(), h.GetSkipped(), h.GetBytesPerSecond()})
	require.Equal(t, wanted, h.GetWanted().AsTime())
	require.Equal(t, 2*time.Second, h.GetTook().AsDuration())
}
