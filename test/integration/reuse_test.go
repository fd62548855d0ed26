//go:build integration

package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/image"
)

// E-22: the second image snapshot takes the layers that it shares with the first from its disk; only the others are
// fetched, and the bytes that are told are those that were.
func TestSnapshotReusesLayers(t *testing.T) {
	n := newNode(t)
	base := []image.Layer{n.busybox(), {Entries: []image.Entry{image.File("large", strings.Repeat("0123456789abcdef", 3<<16))}}}
	first, second := n.push("first", base...), n.push("second", append(base, small("new-1"), small("new-2"))...)
	n.start()
	n.cli(append([]string{"image-snapshot", "create", "first", "--image", first.ref, "--wait"}, n.registryFlags(first.ref)...)...)
	v, err := n.snapshot("first")
	require.NoError(t, err)
	require.Equal(t, n.registry.Bytes(first.blobs...), number(t, v.Status.FetchedBytes))
	require.Zero(t, number(t, v.Status.ReusedBytes))

	n.registry.Reset()
	n.cli(append([]string{"image-snapshot", "create", "second", "--image", second.ref, "--wait"}, n.registryFlags(second.ref)...)...)
	v, err = n.snapshot("second")
	require.NoError(t, err)
	blobs := n.registry.Blobs()
	for i, b := range second.blobs {
		require.Equal(t, i >= len(base), blobs[b].Requests > 0, "layer %d: %+v", i, blobs[b])
	}
	require.Equal(t, n.registry.Bytes(second.blobs...), number(t, v.Status.FetchedBytes))
	require.Greater(t, number(t, v.Status.ReusedBytes), int64(3<<20), "the unpacked layers of the first")
	require.Equal(t, "first", v.Status.BaseName)
	require.Contains(t, n.cli("image-snapshot", "events", "second"), "LayersReused")

	// The first need not be there for the second to serve.
	n.cli("image-snapshot", "delete", "first", "--wait")
	n.registry.Reset()
	n.pull(second)
	require.Zero(t, n.fetched(second), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, "content of new-2", n.run(second, "c", "cat", "/s/new-2"))
	n.requireSameTree(second)
}

// number that protojson writes as text; absent is 0.
func number(t *testing.T, n json.Number) int64 {
	t.Helper()
	if n == "" {
		return 0
	}
	v, err := n.Int64()
	require.NoError(t, err)
	return v
}
