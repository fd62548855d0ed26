package snapshotter_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// Whoever wants to read ahead learns of each container whose topmost layer is on a disk, and of nothing else that is
// prepared.
func TestStartIsTold(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0, 2))
	n.mustPull(t, im, pulling{})
	require.Empty(t, n.seen.starts, "a pull starts nothing")
	ctx := pulling{}.context(t)
	_, err := n.meta.Prepare(ctx, "adopted", im.layers[2].chainID.String())
	require.NoError(t, err)
	want := []snapshotter.Start{{ChainID: im.layers[2].chainID, DiskUUID: n.source.disks[0].uuid}}
	require.Equal(t, want, n.seen.starts)

	_, err = n.meta.Prepare(ctx, "local", im.layers[1].chainID.String())
	require.NoError(t, err)
	_, err = n.meta.Prepare(ctx, "empty", "")
	require.NoError(t, err)
	_, err = n.meta.View(ctx, "view", im.layers[2].chainID.String())
	require.NoError(t, err)
	_, err = n.meta.Prepare(ctx, "adopted", im.layers[2].chainID.String())
	require.Error(t, err, "it is there already")
	require.Equal(t, want, n.seen.starts)
}
