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

// E-22 where only little of each disk is needed: the layers are copied out of two of them, the registry is asked for
// the new layer alone, an event says what came from where, and the volumes that were read are gone.
func TestSnapshotCopiesLayersFromSeveral(t *testing.T) {
	n := newNode(t)
	large := func(name string) image.Layer {
		return image.Layer{Entries: []image.Entry{image.File(name, strings.Repeat(name+"-456789abcdef", 3<<15))}}
	}
	base := n.busybox()
	s1, o1 := large("s1"), large("o1")
	wide := n.push("wide", base, s1, large("s2"), large("s3"), large("s4"), large("s5"), large("s6"))
	other := n.push("other", o1, large("o2"), large("o3"))
	narrow := n.push("narrow", base, s1, o1, small("n1"))
	n.start()
	n.cli(append([]string{"image-snapshot", "create", "wide", "--image", wide.ref, "--wait"}, n.registryFlags(wide.ref)...)...)
	n.cli(append([]string{"image-snapshot", "create", "other", "--image", other.ref, "--wait"}, n.registryFlags(other.ref)...)...)
	n.registry.Reset()
	n.cli(append([]string{"image-snapshot", "create", "narrow", "--image", narrow.ref, "--wait"}, n.registryFlags(narrow.ref)...)...)
	v, err := n.snapshot("narrow")
	require.NoError(t, err)
	blobs := n.registry.Blobs()
	for i, b := range narrow.blobs {
		require.Equal(t, i == len(narrow.blobs)-1, blobs[b].Requests > 0, "layer %d: %+v", i, blobs[b])
	}
	require.Equal(t, n.registry.Bytes(narrow.blobs...), number(t, v.Status.FetchedBytes))
	require.Greater(t, number(t, v.Status.ReusedBytes), int64(2<<20))
	events := n.cli("image-snapshot", "events", "narrow")
	require.Contains(t, events, "copied from wide")
	require.Contains(t, events, "copied from other")

	n.cli("image-snapshot", "delete", "wide", "--wait")
	n.cli("image-snapshot", "delete", "other", "--wait")
	n.registry.Reset()
	n.pull(narrow)
	require.Zero(t, n.fetched(narrow), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, "content of n1", n.run(narrow, "c", "cat", "/s/n1"))
	n.requireSameTree(narrow)
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
