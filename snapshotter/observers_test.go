package snapshotter_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// told notes what an observer is told, with its name.
type told struct {
	name string
	list *[]string
}

func (o told) note(what string) { *o.list = append(*o.list, o.name+" "+what) }

func (o told) Hit(_ context.Context, h snapshotter.Hit)     { o.note("hit " + h.DiskUUID) }
func (o told) Miss(_ context.Context, m snapshotter.Miss)   { o.note("miss " + m.Layer.ImageRef) }
func (o told) Start(_ context.Context, s snapshotter.Start) { o.note("start " + s.DiskUUID) }

// Each observer is told of everything, in the order of the list.
func TestObservers(t *testing.T) {
	var list []string
	o := snapshotter.Observers{told{"a", &list}, told{"b", &list}}
	o.Hit(t.Context(), snapshotter.Hit{DiskUUID: "1"})
	o.Miss(t.Context(), snapshotter.Miss{Layer: snapshotter.LayerRequest{ImageRef: "r"}})
	o.Start(t.Context(), snapshotter.Start{DiskUUID: "2"})
	require.Equal(t, []string{"a hit 1", "b hit 1", "a miss r", "b miss r", "a start 2", "b start 2"}, list)
	snapshotter.Observers(nil).Hit(t.Context(), snapshotter.Hit{})
}
