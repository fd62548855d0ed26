package matcher

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
)

func madeUp(fleet, n int) Candidate {
	c := Candidate{Name: fmt.Sprintf("f%d-%d", fleet, n), ID: fmt.Sprintf("f%d-%d", fleet, n), State: StateAvailable, Created: time.Unix(int64(n), 0)}
	for i := range 10 {
		own := digest.FromString(fmt.Sprintf("%d %d %d", fleet, n%7, i)) // every seventh candidate is the same
		c.Layers = append(c.Layers, Layer{LayerName: layerdisk.LayerName{ChainID: own, DiffID: own, Blob: digest.FromString("blob" + own.String())}, CompressedBytes: 1, StackBound: i == 9})
		c.Images = append(c.Images, CandidateImage{Reference: c.Name, ManifestDigest: own, IndexDigest: own})
	}
	return c
}

// TestNothingLeftBehind shows that an index that was emptied holds nothing, and that a fleet that comes and goes does
// not make it grow.
func TestNothingLeftBehind(t *testing.T) {
	x := NewIndex()
	var layers, images, lists int
	for round := range 4 {
		for n := range 100 {
			require.NoError(t, x.Put(madeUp(round, n)))
		}
		if round == 0 {
			layers, images, lists = len(x.content.layers.things), len(x.content.images.things), len(x.content.byDiff.lists.of)
			require.Equal(t, 70, layers, "each layer once")
			require.Equal(t, 1000, images)
		}
		for n := range 100 {
			require.True(t, x.Remove(madeUp(round, n).ID))
		}
		for name, k := range map[string]*keyed{
			"byChain": &x.content.byChain, "byDiff": &x.content.byDiff, "byBlob": &x.content.byBlob, "looseChain": &x.content.looseChain, "looseBlob": &x.content.looseBlob,
			"byRef": &x.content.byRef, "byManifest": &x.content.byManifest, "byIdx": &x.content.byIdx,
		} {
			require.Empty(t, k.sets, name)
			require.Len(t, k.lists.free, len(k.lists.of), name)
		}
		require.Len(t, x.content.layers.things, layers)
		require.Len(t, x.content.layers.free, layers)
		require.Len(t, x.content.images.things, images)
		require.Len(t, x.content.images.free, images)
		require.Len(t, x.content.byDiff.lists.of, lists)
		require.Len(t, x.content.layers.lists.free, len(x.content.layers.lists.of))
		require.Len(t, x.records, 100)
		require.Empty(t, x.byID)
		require.Empty(t, x.byName)
	}
}

// TestCostOfStrangers shows that candidates which share nothing with the request are not even looked at.
func TestCostOfStrangers(t *testing.T) {
	x := NewIndex()
	mine := madeUp(0, 0)
	require.NoError(t, x.Put(mine))
	request := Request{Rules: Rules{AutoMatch: true}, Images: []Image{{Reference: mine.Name, ManifestDigest: mine.Images[0].ManifestDigest, Layers: mine.Layers}}}
	for n := range 2000 {
		require.NoError(t, x.Put(madeUp(1, n)))
	}
	d, err := x.Match(request)
	require.NoError(t, err)
	require.Equal(t, 1, d.Considered)
	g := gathered{index: x, scratch: x.scratch(), plan: newPlan(&request)}
	g.platforms = g.wanted()
	g.gather()
	require.Len(t, g.touched, 1)
}

// TestManyPlatforms shows that more platforms than a word has bits are still told apart from none.
func TestManyPlatforms(t *testing.T) {
	x := NewIndex()
	for n := range 80 {
		c := madeUp(0, n)
		for i := range c.Images {
			c.Images[i].Platform = Platform{OS: "linux", Architecture: fmt.Sprintf("cpu%d", n)}
		}
		require.NoError(t, x.Put(c))
	}
	for _, n := range []int{0, 62, 63, 79} {
		own := madeUp(0, n)
		d, err := x.Match(Request{Rules: Rules{AutoMatch: true, Order: OrderQuantity}, Images: []Image{
			{Reference: own.Name, Platform: Platform{OS: "linux", Architecture: fmt.Sprintf("cpu%d", n)}},
		}})
		require.NoError(t, err)
		require.Equal(t, own.Name, d.Chosen[0].Name)
	}
}
