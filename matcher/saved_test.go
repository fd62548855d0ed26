package matcher_test

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"
)

// TestSaved has the neutral order: what is really saved, by which disks together.
func TestSaved(t *testing.T) {
	app := img("app:1", "os:100:200", "lib:50:90", "app:10:20")
	tool := img("tool:1", "os:100:200", "tool:40:70")
	rules := func(r Request, disks int, cost int64) Request {
		return ruled(r, func(r *Rules) { r.MaxAttach, r.AttachCostBytes = disks, cost })
	}
	// holed has the layers but not the image; those left out make a hole.
	holed := func(name string, i Image, out ...int) Candidate {
		c := snap(name, 1, i)
		c.Images = nil
		for n, l := range i.Layers {
			for _, o := range out {
				if n == o {
					c.Layers = without(c.Layers, l.ChainID)
				}
			}
		}
		return c
	}
	present := func(i Image, layers ...int) Image {
		i.Layers = append([]Layer{}, i.Layers...)
		for _, n := range layers {
			i.Layers[n].Present = true
		}
		return i
	}
	for _, tc := range []struct {
		name    string
		request Request
		fleet   []Candidate
		want    []string
		saved   Saving
	}{
		{"the run from the bottom counts", rules(auto(app), 1, 0),
			[]Candidate{holed("base", app, 2), holed("top", app, 0)}, []string{"base"}, Saving{150, 0}},
		{"a hole ends the run, the rest saves unpacking", rules(auto(app), 1, 0), []Candidate{holed("a", app, 1)}, []string{"a"}, Saving{100, 20}},
		{"equal runs, the rest decides", rules(auto(app), 1, 0), []Candidate{holed("a", app, 1, 2), holed("b", app, 1)}, []string{"b"}, Saving{100, 20}},
		{"shared layers count once", rules(auto(app, tool), 1, 0), []Candidate{snap("a", 1, app, tool)}, []string{"a"}, Saving{200, 0}},
		{"a blob in two stacks is downloaded once", rules(auto(img("x:1", "os:100:200", "lib:50:90"), img("y:1", "old:30:60", "lib:50:90")), 1, 0),
			[]Candidate{snap("a", 1, img("x:1", "os:100:200", "lib:50:90"), img("y:1", "old:30:60", "lib:50:90"))}, []string{"a"}, Saving{180, 0}},
		{"what another image has downloaded anyway saves only unpacking",
			rules(auto(img("x:1", "os:100:200", "lib:50:90"), img("y:1", "old:30:60", "lib:50:90")), 1, 0),
			[]Candidate{snap("a", 1, img("x:1", "os:100:200", "lib:50:90"))}, []string{"a"}, Saving{100, 2 * 90}},
		{"so a disk with less may save more", rules(auto(img("x:1", "os:100:200", "lib:50:90"), img("y:1", "old:30:60", "lib:50:90")), 1, 0),
			[]Candidate{snap("a", 1, img("x:1", "os:100:200", "lib:50:90")), snap("b", 9, img("z:1", "os:100:200"), img("z:2", "old:30:60"))},
			[]string{"b"}, Saving{130, 0}},
		{"what an image before has brought is no gap", rules(auto(img("x:1", "os:100:200"), app), 1, 0), []Candidate{holed("a", app, 0)}, []string{"a"}, Saving{60, 0}},
		{"in the other order it is one", rules(auto(app, img("x:1", "os:100:200")), 1, 0), []Candidate{holed("a", app, 0)}, []string{"a"}, Saving{0, 110}},
		{"layers on the node count for nobody", rules(auto(present(app, 0)), 1, 0),
			[]Candidate{holed("a", app, 1), snap("b", 9, img("x:1", "os:100:200", "lib:50:90"))}, []string{"b"}, Saving{50, 0}},
		{"layers that are there close a hole, and are not downloaded again", rules(auto(present(app, 1)), 1, 0),
			[]Candidate{holed("a", app, 1)}, []string{"a"}, Saving{160, 0}},
		{"all on the node: nothing to attach", rules(auto(present(app, 0, 1, 2)), 1, 0), []Candidate{snap("a", 1, app)}, nil, Saving{}},

		{"attached wins the tie", rules(auto(app), 2, 0), []Candidate{snap("a", 1, app), attached(snap("b", 9, app))}, []string{"b"}, Saving{160, 0}},
		{"attached loses to more", rules(auto(app), 2, 0), []Candidate{snap("a", 9, app), attached(holed("b", app, 2))}, []string{"a"}, Saving{160, 0}},
		{"more is not worth an attach", rules(auto(app), 2, 10), []Candidate{snap("a", 9, app), attached(holed("b", app, 2))}, []string{"b"}, Saving{150, 0}},
		{"one byte more is", rules(auto(app), 2, 9), []Candidate{snap("a", 9, app), attached(holed("b", app, 2))}, []string{"a"}, Saving{160, 0}},
		{"not worth attaching at all", rules(auto(app), 2, 160), []Candidate{snap("a", 9, app)}, nil, Saving{}},
		{"just worth it", rules(auto(app), 2, 159), []Candidate{snap("a", 9, app)}, []string{"a"}, Saving{160, 0}},

		{"two disks cover more", rules(auto(app, redis), 2, 0), []Candidate{snap("a", 1, app), snap("b", 1, redis), snap("c", 1, tool)}, []string{"a", "b"}, Saving{200, 0}},
		{"but one may be all that is allowed", rules(auto(app, redis), 1, 0), []Candidate{snap("a", 1, app), snap("b", 1, redis)}, []string{"a"}, Saving{160, 0}},
		{"one disk that has all is better than two", rules(auto(app, redis), 2, 0),
			[]Candidate{snap("a", 1, app), snap("b", 1, redis), snap("z", 99, app, redis)}, []string{"z"}, Saving{200, 0}},
		{"a second disk has to be worth its cost", rules(auto(app, busybox), 2, 2), []Candidate{snap("a", 1, app), snap("b", 1, busybox)}, []string{"a"}, Saving{160, 0}},
		{"disks fill each other's holes", rules(auto(app), 2, 0), []Candidate{holed("a", app, 1), holed("b", app, 0, 2)}, []string{"a", "b"}, Saving{160, 0}},
		{"a pair may beat the best single one", rules(auto(app, tool, redis), 2, 0),
			[]Candidate{snap("best", 1, img("b:1", "os:100:200", "lib:50:90"), tool), snap("x", 1, app), snap("y", 1, tool, redis)}, []string{"y", "x"}, Saving{240, 0}},
		{"the attached one serves beside the new one", rules(auto(app, redis), 1, 0), []Candidate{attached(snap("a", 1, app)), snap("b", 1, redis)}, []string{"a", "b"}, Saving{200, 0}},
		{"of equals only one is attached", rules(auto(app), 2, 0), []Candidate{snap("b", 1, app), snap("a", 1, app)}, []string{"a"}, Saving{160, 0}},
		{"of equals the newer", rules(auto(app), 2, 0), []Candidate{snap("a", 2, app), snap("b", 1, app)}, []string{"b"}, Saving{160, 0}},

		{"sizes from the disk if the request has none", rules(auto(sizeless(app)), 1, 0), []Candidate{holed("a", app, 1), snap("b", 9, app)}, []string{"b"}, Saving{160, 0}},
		{"by name alone, the size is the disk's", rules(auto(named(app)), 1, 0), []Candidate{snap("a", 1, app)}, []string{"a"}, Saving{160, 0}},
		{"by name alone, the newer of a moved tag", rules(auto(named(app)), 1, 0),
			[]Candidate{snap("a", 9, app), snap("b", 1, img("app:1", "os:5:9"))}, []string{"b"}, Saving{160, 0}},
		{"unknown sizes are worth attaching", rules(auto(sizeless(named(app))), 1, 1000), []Candidate{but(snap("a", 1, app), func(c *Candidate) {
			c.Layers, c.Images = nil, []CandidateImage{{Reference: "app:1", Platform: amd64}}
		})}, []string{"a"}, Saving{1001, 0}},
		{"images without layers are taken to be whole", rules(auto(app), 1, 0), []Candidate{but(snap("a", 1, app), func(c *Candidate) { c.Layers = nil })}, []string{"a"}, Saving{160, 0}},

		{"by chain ID alone", rules(auto(only(app, "chain")), 1, 0), []Candidate{snap("a", 1, app)}, []string{"a"}, Saving{160, 0}},
		{"by diff ID alone", rules(auto(only(app, "diff")), 1, 0), []Candidate{snap("a", 1, app)}, []string{"a"}, Saving{160, 0}},
		{"by compressed digest alone", rules(auto(only(app, "blob")), 1, 0), []Candidate{snap("a", 1, app)}, []string{"a"}, Saving{160, 0}},
		{"diff ID in another stack", rules(auto(img("y:1", "lib:50:90")), 1, 0), []Candidate{snap("a", 1, app)}, []string{"a"}, Saving{50, 0}},
		{"but not of a layer that is bound to its stack", rules(auto(img("y:1", "lib:50:90")), 1, 0), []Candidate{bound(snap("a", 1, app))}, nil, Saving{}},
		{"which is found in its stack", rules(auto(app), 1, 0), []Candidate{bound(snap("a", 1, app))}, []string{"a"}, Saving{160, 0}},
		{"a disk that knows only compressed digests", rules(auto(app), 1, 0), []Candidate{but(snap("a", 1, app), func(c *Candidate) {
			c.Images = nil
			c.Layers = only(app, "blob").Layers
		})}, []string{"a"}, Saving{160, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := match(t, fleet(t, tc.fleet...), tc.request)
			require.Equal(t, append([]string{}, tc.want...), names(d))
			require.Equal(t, tc.saved, d.Saved)
			require.True(t, d.Proven)
		})
	}
}

func without(ls []Layer, chain digest.Digest) []Layer {
	out := []Layer{}
	for _, l := range ls {
		if l.ChainID != chain {
			out = append(out, l)
		}
	}
	return out
}

func sizeless(i Image) Image {
	layers := i.Layers
	i.Layers = nil
	for _, l := range layers {
		l.CompressedBytes, l.UnpackedBytes = 0, 0
		i.Layers = append(i.Layers, l)
	}
	return i
}

func only(i Image, what string) Image {
	layers := i.Layers
	i.Layers = nil
	for _, l := range layers {
		n := Layer{CompressedBytes: l.CompressedBytes, UnpackedBytes: l.UnpackedBytes}
		switch what {
		case "chain":
			n.ChainID = l.ChainID
		case "diff":
			n.DiffID = l.DiffID
		default:
			n.Blob = l.Blob
		}
		i.Layers = append(i.Layers, n)
	}
	return i
}

func bound(c Candidate) Candidate {
	layers := c.Layers
	c.Layers = nil
	for _, l := range layers {
		l.StackBound = true
		c.Layers = append(c.Layers, l)
	}
	return c
}

// TestManyDifferent shows that a set that cannot be proven the best is still put together and says so.
func TestManyDifferent(t *testing.T) {
	var images []Image
	var fleetOf []Candidate
	for i := range 80 {
		images = append(images, img(fmt.Sprintf("app%02d:1", i), fmt.Sprintf("l%d:%d", i, 100+i)))
		fleetOf = append(fleetOf, snap(fmt.Sprintf("s%02d", i), 1, images[i]))
	}
	x := fleet(t, fleetOf...)
	d := match(t, x, ruled(auto(images...), func(r *Rules) { r.MaxAttach = 4 }))
	require.False(t, d.Proven)
	require.Equal(t, []string{"s79", "s78", "s77", "s76"}, names(d))
	require.Equal(t, int64(179+178+177+176), d.Saved.DownloadBytes)

	// Two that cover everything are certainly the best, however many others there are.
	for i, half := range [][]Image{images[:41], images[40:]} {
		require.NoError(t, x.Put(snap(fmt.Sprintf("half%d", i), 50, half...)))
	}
	d = match(t, x, ruled(auto(images...), func(r *Rules) { r.MaxAttach = 4 }))
	require.ElementsMatch(t, []string{"half0", "half1"}, names(d))
	require.True(t, d.Proven)
}
