package matcher_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"
)

// TestExplanation has the sentence for every verdict and the key by which a candidate lost.
func TestExplanation(t *testing.T) {
	const kib = 1 << 10
	big := img("big:1", "os:2048:4096", "big:1048576:9")
	part := img("part:1", "os:2048:4096", "part:1:9")
	ordered := func(o Order, images ...Image) Request {
		return ruled(auto(images...), func(r *Rules) { r.Order, r.MaxAttach = o, 1 })
	}
	costly := func(cost int64, images ...Image) Request {
		return ruled(auto(images...), func(r *Rules) { r.MaxAttach, r.AttachCostBytes = 1, cost })
	}
	for _, tc := range []struct {
		name    string
		request Request
		fleet   []Candidate
		of      string
		verdict Verdict
		why     string
	}{
		{"chosen for what it saves", ordered(OrderSaved, big), []Candidate{snap("a", 1, big)}, "a", VerdictChosen,
			"it saves 1.0 MiB of download and 0 bytes more of unpacking"},
		{"chosen by the keys", ordered(OrderDegree, big), []Candidate{snap("a", 1, big)}, "a", VerdictChosen,
			"it is the best by matched-images, matched-bytes, created"},
		{"chosen together", auto(big, busybox), []Candidate{snap("a", 1, big), snap("b", 1, busybox)}, "b", VerdictChosen,
			"it saves 2 bytes of download and 0 bytes more of unpacking, the 2 chosen ones together 1.0 MiB of download and 0 bytes more of unpacking"},
		{"lost by bytes", ordered(OrderSize, big), []Candidate{snap("a", 1, big), snap("b", 1, part)}, "b", VerdictLost,
			`it lost to image snapshot "a" by matched-bytes: 2.0 KiB against 1.0 MiB`},
		{"lost by images", ordered(OrderQuantity, big, busybox), []Candidate{snap("a", 1, big, busybox), snap("b", 1, big)}, "b", VerdictLost,
			`it lost to image snapshot "a" by matched-images: 1 against 2`},
		{"lost by age", ordered(OrderSize, big), []Candidate{snap("a", 1, big), snap("b", 2, big)}, "b", VerdictLost,
			`it lost to image snapshot "a" by created: 2026-06-01 10:00:00 against 2026-06-01 11:00:00`},
		{"lost by name", ordered(OrderSize, big), []Candidate{snap("a", 1, big), snap("b", 1, big)}, "b", VerdictLost,
			`it equals image snapshot "a", whose name is first in the alphabet`},
		{"lost because not attached", ordered(OrderSaved, big), []Candidate{attached(snap("a", 9, big)), snap("b", 1, big)}, "b", VerdictLost,
			`it lost to image snapshot "a" by attached: 0 against 1`},
		{"lost as only one may be attached", ordered(OrderSaved, big, busybox), []Candidate{snap("a", 1, big), snap("b", 1, busybox)}, "b", VerdictLost,
			`it lost to image snapshot "a" by saved-bytes: 2 bytes against 1.0 MiB`},
		{"not needed beside two", auto(big, busybox, redis), []Candidate{snap("a", 1, big), snap("b", 1, busybox, redis),
			snap("c", 5, img("c:1", "os:2048:4096"), busybox)}, "c", VerdictNotNeeded, "the chosen ones have all layers that it has"},
		{"not worth it", costly(2*kib*kib, big), []Candidate{snap("a", 1, big)}, "a", VerdictNotWorthwhile,
			"it would save 1.0 MiB of download and 0 bytes more of unpacking more, attaching it costs as much as downloading 2.0 MiB"},
		{"not needed on this node", ordered(OrderSaved, func() Image { i := img("x:1", "os:5"); i.Layers[0].Present = true; return i }()),
			[]Candidate{snap("a", 1, img("x:1", "os:5"))}, "a", VerdictNotNeeded, "all layers that it has are on the node already"},
		{"gate of a perfect match", ruled(auto(big, busybox), func(r *Rules) { r.PerfectMatch = true }), []Candidate{snap("a", 1, big)}, "a", VerdictGate,
			"it matches 1 of 2 images exactly and a perfect match is asked for"},
		{"gate of a count", ruled(auto(big, busybox), func(r *Rules) { r.MatchCount = 2 }), []Candidate{snap("a", 1, big)}, "a", VerdictGate,
			"it matches 1 images exactly and 2 are asked for"},
		{"not ready", auto(big), []Candidate{but(snap("a", 1, big), func(c *Candidate) { c.State = "Updating" })}, "a", VerdictNotReady,
			`its state is "Updating", not "Available"`},
		{"expired", auto(big), []Candidate{but(snap("a", 1, big), func(c *Candidate) { c.Expires = noon.AddDate(0, 0, -1) })}, "a", VerdictExpired,
			"it expired at 2026-05-31 12:00:00 UTC"},
		{"other platform", auto(big), []Candidate{snap("a", 1, on(arm64, big), on(Platform{"linux", "arm", "v7"}, part))}, "a", VerdictPlatform,
			"it holds images for linux/arm64, linux/arm/v7, wanted is linux/amd64"},
		{"unreachable", auto(big), []Candidate{but(snap("a", 1, big), func(c *Candidate) { c.Unreachable = "it is in zone b" })}, "a", VerdictUnreachable,
			"this node cannot attach it: it is in zone b"},
		{"no match", auto(big), []Candidate{snap("a", 1, img("big:1", "x:1"))}, "a", VerdictNoMatch, "it holds none of the images and none of their layers"},
		{"pinned", ruled(auto(big), func(r *Rules) { r.Pin.Name = "b" }), []Candidate{snap("a", 1, big), snap("b", 2, big)}, "b", VerdictChosen, "it is asked for"},
		{"beside a pin", ruled(auto(big), func(r *Rules) { r.Pin.Name = "b" }), []Candidate{snap("a", 1, big), snap("b", 2, big)}, "a", VerdictSetAside,
			`image snapshot "b" is asked for`},
		{"in a rejected request", ruled(auto(big), func(r *Rules) { r.Pin.Name, r.Conflict = "b", ConflictRejectIfDifferent }),
			[]Candidate{snap("a", 1, big), snap("b", 2, big)}, "b", VerdictSetAside, "the request is rejected"},
		{"pinned without an image", ruled(auto(big), func(r *Rules) { r.Pin.Name, r.PinNeedsMatch = "a", true }), []Candidate{snap("a", 1, part)}, "a", VerdictNoMatch,
			"it holds none of the images, only single layers of them"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := explained(t, match(t, fleet(t, tc.fleet...), tc.request), tc.of)
			require.Equal(t, tc.why, x.Why)
			require.Equal(t, tc.verdict, x.Verdict)
		})
	}
}

// TestWhatMatched has the part of an explanation about images and layers.
func TestWhatMatched(t *testing.T) {
	web := img("web:1", "os:10:20", "lib:5:9", "web:3:4")
	gone := img("gone:1", "gone:1")
	old := img("web:1", "os:10:20", "old:5:9", "web:3:4")
	d := match(t, fleet(t, snap("a", 1, old, redis), snap("b", 1, web)),
		ruled(auto(web, named(redis), gone), func(r *Rules) { r.MaxAttach, r.Order = 1, OrderQuantity }))
	a, b := explained(t, d, "a"), explained(t, d, "b")
	require.Equal(t, []ImageMatch{
		{Reference: "web:1", By: MatchedByLayers, MovedTag: old.ManifestDigest, Layers: 3, Hits: 2, Run: 1},
		{Reference: redis.Reference, By: MatchedByName},
		{Reference: "gone:1", Layers: 1},
	}, a.Images)
	require.Equal(t, []ImageMatch{
		{Reference: "web:1", By: MatchedByDigest, Layers: 3, Hits: 3, Run: 3},
		{Reference: redis.Reference},
		{Reference: "gone:1", Layers: 1},
	}, b.Images)
	require.Equal(t, Saving{DownloadBytes: 10 + 40, UnpackBytes: 4}, a.Saved)
	require.Equal(t, []Key{{KeyImages, 1}, {KeyCreated, noon.UnixMicro() - 3600e6}}, b.Score)
	require.Equal(t, "id-b", b.ID)
	require.False(t, b.Attached || b.Pinned)
}

// TestExplainLimit shows that the list is bounded, best first, and that nobody who was chosen or pinned is left out.
func TestExplainLimit(t *testing.T) {
	x := NewIndex()
	for i := range 50 {
		require.NoError(t, x.Put(snap(fmt.Sprintf("s%02d", i), i, nginx)))
		require.NoError(t, x.Put(but(snap(fmt.Sprintf("t%02d", i), 0, nginx), func(c *Candidate) { c.State = "Creating" })))
	}
	list := func(change func(*Request)) []string {
		r := ruled(auto(nginx), func(r *Rules) { r.Order = OrderSize })
		change(&r)
		d := match(t, x, r)
		require.Equal(t, 100, d.Considered)
		out := []string{}
		for _, c := range d.Candidates {
			out = append(out, c.Name)
		}
		return out
	}
	require.Equal(t, []string{"s00", "s01", "s02"}, list(func(r *Request) { r.Explain = 3 }))
	require.Len(t, list(func(r *Request) {}), DefaultExplain)
	require.Equal(t, []string{"s00"}, list(func(r *Request) { r.Explain = -1 }))
	require.Equal(t, []string{"s00", "s01", "s49"}, list(func(r *Request) { r.Explain, r.Rules.Pin.Name = 2, "s49" }))
	all := list(func(r *Request) { r.Explain = 1000 })
	require.Len(t, all, 100)
	require.Equal(t, []string{"s49", "t00"}, all[49:51], "those that may be used come first")
}
