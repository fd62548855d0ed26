package imagesnapshotservice_test

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/imagesnapshot"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

func TestWatchImageSnapshots(t *testing.T) {
	w := newWorld(t)
	w.create("other")
	created := w.create("nightly")
	stream, err := w.WatchImageSnapshots(t.Context(), &imagesnapshotv1.WatchImageSnapshotsRequest{Filter: &imagesnapshotv1.ImageSnapshotFilter{NameOrId: created.GetId()}})
	require.NoError(t, err)
	m, err := stream.Recv()
	require.NoError(t, err)
	require.Equal(t, "nightly", m.GetImageSnapshot().GetName())
	w.put("other", func(o *imagesnapshot.ImageSnapshot) { o.Status.Progress = 1 })
	o := w.put("nightly", func(o *imagesnapshot.ImageSnapshot) { o.Status.Progress = 40 })
	m, err = stream.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 40, m.GetImageSnapshot().GetStatus().GetProgress())
	require.NoError(t, w.store.Delete(t.Context(), "nightly", o.ResourceVersion))
	m, err = stream.Recv()
	require.NoError(t, err)
	require.True(t, m.GetDeleted())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF, "the deletion of what was named ends the stream")

	ctx, cancel := context.WithCancel(t.Context())
	stream, err = w.WatchImageSnapshots(ctx, &imagesnapshotv1.WatchImageSnapshotsRequest{})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	cancel()
	_, err = stream.Recv()
	require.Equal(t, codes.Canceled, status.Code(err))
}

// The name may be another one's by the time the watch looks.
func TestWatchSeesReplacement(t *testing.T) {
	w := newWorld(t)
	first := w.create("nightly")
	stream, err := w.WatchImageSnapshots(t.Context(), &imagesnapshotv1.WatchImageSnapshotsRequest{Filter: &imagesnapshotv1.ImageSnapshotFilter{NameOrId: "nightly"}})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	require.NoError(t, w.store.Delete(t.Context(), "nightly", first.GetResourceVersion()))
	w.create("nightly")
	m, err := stream.Recv()
	require.NoError(t, err)
	require.True(t, m.GetDeleted())
	require.Equal(t, first.GetId(), m.GetImageSnapshot().GetId())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
}

// E-27: what happened to an image snapshot, so far and from now on.
func TestImageSnapshotEvents(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("nightly")
	stream, err := w.WatchImageSnapshotEvents(ctx, &imagesnapshotv1.WatchImageSnapshotEventsRequest{Filter: &imagesnapshotv1.ImageSnapshotFilter{NameOrId: "nightly"}})
	require.NoError(t, err)
	next := func() *imagesnapshotv1.ImageSnapshotEvent {
		m, err := stream.Recv()
		require.NoError(t, err)
		return m.GetEvent()
	}
	require.Equal(t, "Accepted", next().GetReason())
	later := time.Now().Add(time.Hour).UTC()
	warn := func(at time.Time) {
		w.put("nightly", func(o *imagesnapshot.ImageSnapshot) {
			o.AddEvent(at, imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, "again")
		})
	}
	warn(later)
	e := next()
	require.Equal(t, "nightly", e.GetImageSnapshotName())
	require.Equal(t, imagesnapshotv1.ImageSnapshotEventType_IMAGE_SNAPSHOT_EVENT_TYPE_WARNING, e.GetType())
	require.EqualValues(t, 1, e.GetCount())
	w.put("nightly", func(o *imagesnapshot.ImageSnapshot) { o.Status.Progress++ }) // no event
	warn(later.Add(time.Second))
	e = next()
	require.EqualValues(t, 2, e.GetCount(), "the same again is told again, with its count")
	require.Equal(t, later, e.GetFirst().AsTime())

	w.create("other")
	list, err := w.ListImageSnapshotEvents(ctx, &imagesnapshotv1.ListImageSnapshotEventsRequest{})
	require.NoError(t, err)
	require.Len(t, list.GetEvents(), 3)
	require.Equal(t, "other", list.GetEvents()[1].GetImageSnapshotName(), "by time, not by name")
	require.Equal(t, "Retrying", list.GetEvents()[2].GetReason())
	_, err = w.ListImageSnapshotEvents(ctx, &imagesnapshotv1.ListImageSnapshotEventsRequest{Filter: &imagesnapshotv1.ImageSnapshotFilter{NameOrId: "none"}})
	require.Equal(t, codes.NotFound, status.Code(err))
}

func TestWatchNeedsTheStore(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.store.Close())
	stream, err := w.WatchImageSnapshots(t.Context(), &imagesnapshotv1.WatchImageSnapshotsRequest{})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
}
