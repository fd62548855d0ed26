package control_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/control"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

type hydrations []control.Hydration

func (h hydrations) Hydrations() []control.Hydration { return h }

func TestHydrationsOverTheWire(t *testing.T) {
	s, _, _ := newService(t, newFakeStage())
	c := serve(t, s)
	st, err := c.Status(t.Context(), &controlv1.StatusRequest{})
	require.NoError(t, err)
	require.Empty(t, st.GetHydrations(), "nothing reads ahead")

	wanted := time.Unix(1_700_000_000, 0).UTC()
	s.WithHydrations(hydrations{{
		Image: "docker.io/library/app:1", Disk: "base", DiskUUID: "u", Listed: true, State: "failed", Reason: "input/output error",
		TotalBytes: 9, Bytes: 8, Reads: 7, Skipped: 6, Wanted: wanted, Took: 2 * time.Second, BytesPerSecond: 4,
	}})
	st, err = c.Status(t.Context(), &controlv1.StatusRequest{})
	require.NoError(t, err)
	require.Len(t, st.GetHydrations(), 1)
	h := st.GetHydrations()[0]
	require.Equal(t, "docker.io/library/app:1 base u failed input/output error",
		h.GetImage()+" "+h.GetDisk()+" "+h.GetDiskUuid()+" "+h.GetState()+" "+h.GetReason())
	require.True(t, h.GetListed())
	require.Equal(t, []int64{9, 8, 7, 6, 4}, []int64{h.GetTotalBytes(), h.GetBytes(), h.GetReads(), h.GetSkipped(), h.GetBytesPerSecond()})
	require.Equal(t, wanted, h.GetWanted().AsTime())
	require.Equal(t, 2*time.Second, h.GetTook().AsDuration())
}
