package snapshotter_test

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// A container uses every disk below it, also one that only other disks' layers lie on; a local layer does so too.
func TestUses(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	last := len(im.layers) - 1
	n := newNode(t, snapshotter.Config{}, im.layers[:1], im.layers[1:last])
	uses, err := n.berth.Uses(t.Context())
	require.NoError(t, err)
	require.Empty(t, uses)

	n.mustPull(t, im, pulling{})
	want := map[string]snapshotter.Use{
		n.source.disks[0].uuid: {Chains: map[digest.Digest]bool{im.layers[0].chainID: true}, Others: 1},
		n.source.disks[1].uuid: {Chains: map[digest.Digest]bool{}, Others: 1},
	}
	for _, l := range im.layers[1:last] {
		want[n.source.disks[1].uuid].Chains[l.chainID] = true
	}
	uses, err = n.berth.Uses(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, uses)

	how := pulling{}
	_, err = n.meta.Prepare(how.context(t), "container", im.top().String())
	require.NoError(t, err)
	_, err = n.meta.View(how.context(t), "lowest", im.layers[0].chainID.String())
	require.NoError(t, err)
	uses, err = n.berth.Uses(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, uses[n.source.disks[0].uuid].Others)
	require.Equal(t, 2, uses[n.source.disks[1].uuid].Others)
}
