package snapshotter_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// TestPull pulls with containerd's own unpacker, through metadata store and proxy, whatever part of the image is on
// disks.
func TestPull(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	want := stockTree(t, im)
	both := []pulling{{}, {parallel: 4, rebase: true}}
	ways := map[snapshotter.Protocol][]pulling{
		snapshotter.ProtocolAuto:        append(both, pulling{parallel: 4}, pulling{parallel: 1, rebase: true}),
		snapshotter.ProtocolSequential:  both,
		snapshotter.ProtocolEarlyMounts: both,
	}
	for _, c := range []struct {
		name   string
		disks  [][]layer
		missed int // the lowest layer that containerd has to fetch
	}{
		{"nothing on a disk", nil, 0},
		{"all on one disk", [][]layer{im.layers}, 5},
		{"all on two disks", [][]layer{pick(im, 3, 0), pick(im, 1, 2, 4)}, 5},
		{"the lowest three", [][]layer{pick(im, 0, 1, 2)}, 3},
		{"all but the lowest", [][]layer{pick(im, 1, 2, 3, 4)}, 0},
		{"a hole in the middle", [][]layer{pick(im, 0, 1, 3, 4)}, 2},
		{"the top only", [][]layer{pick(im, 4)}, 0},
	} {
		for protocol, ways := range ways {
			for _, how := range ways {
				t.Run(fmt.Sprintf("%s/%s/parallel %d rebase %v", c.name, protocol, how.parallel, how.rebase), func(t *testing.T) {
					t.Parallel()
					n := newNode(t, snapshotter.Config{Protocol: protocol}, c.disks...)
					fetched := n.mustPull(t, im, how)
					missed := im.layers[c.missed:]
					if how.parallel > 0 && how.rebase && protocol == snapshotter.ProtocolSequential {
						missed = im.layers[min(c.missed, 1):]
					}
					// containerd begins to fetch all layers from the first miss on, and stops when it has what it
					// needs.
					require.Subset(t, digests(missed), fetched)
					require.Equal(t, len(missed) > 0, len(fetched) > 0)
					n.requireTree(t, want, im, how)
					n.requireConsistent(t)
					hits, misses := n.seen.take()
					onDisk := slices.Concat(c.disks...)
					if how.parallel > 0 && how.rebase && protocol == snapshotter.ProtocolSequential {
						onDisk = onDisk[:0]
						if c.missed > 0 {
							onDisk = im.layers[:1]
						}
					}
					require.Len(t, hits, len(onDisk))
					require.Len(t, misses, len(im.layers)-len(onDisk))
				})
			}
		}
	}
}

// requireConsistent checks that what is held is what is adopted.
func (n *node) requireConsistent(t testing.TB) {
	t.Helper()
	adopted, err := n.berth.Adopted(t.Context())
	require.NoError(t, err)
	held := map[string]string{}
	for _, a := range adopted {
		held[a.Holder] = a.DiskUUID
		usage, err := n.berth.Usage(t.Context(), a.Name)
		require.NoError(t, err)
		require.Equal(t, snapshots.Usage{}, usage)
	}
	require.Len(t, held, len(adopted), "each adopted snapshot holds its disk by itself")
	require.Equal(t, held, n.source.holders())
}
