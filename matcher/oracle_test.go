package matcher_test

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"
)

// seed repeats one run of TestOracle: go test -run TestOracle -seed N.
var seed = flag.Uint64("seed", 0, "seed of the random fleets, 0 for a new one")

// TestOracle compares the index with a brute force reading of the rules on thousands of small random fleets: every
// candidate against every request, and for every set of disks what containerd would fetch for the images with them (see
// node). Fleets change between matches, so that the index is not only built. Fails when plan.saving counts a blob of
// two stacks twice, or a fetch ends with the layer that began it.
func TestOracle(t *testing.T) {
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	rounds := 3000
	if testing.Short() {
		rounds = 1000
	}
	outcomes := make(map[string]int)
	for round := range uint64(rounds) {
		s := first + round
		g := &generator{rand.New(rand.NewPCG(s, 7))}
		x, fleet := NewIndex(), make(map[string]Candidate)
		for range 1 + g.IntN(3) {
			g.change(t, x, fleet)
			r := g.request()
			d, err := x.Match(r)
			require.NoError(t, err, "seed %d", s)
			want := newOracle(r, sorted(fleet)).decide()
			require.Equal(t, want.outcome, d.Outcome, "seed %d: %s: want %v, request %+v", s, d.Reason, want, r)
			require.Equal(t, want.chosen, names(d), "seed %d: %s", s, d.Reason)
			require.Equal(t, want.saved, d.Saved, "seed %d: %v of %+v for %+v", s, want.chosen, sorted(fleet), r)
			require.Equal(t, want.nothing, d.NothingMatched, "seed %d", s)
			require.True(t, d.Proven, "seed %d", s)
			checkExplained(t, d, want, s)
			outcomes[fmt.Sprintf("%v, %d disks", d.Outcome, len(d.Chosen))]++
		}
	}
	t.Logf("first seed %d, outcomes %v", first, outcomes)
	for _, o := range []string{"pull, 0 disks", "use, 1 disks", "use, 2 disks", "use, 3 disks", "reject, 0 disks"} {
		require.NotZero(t, outcomes[o], "the fleets never gave %q", o)
	}
}

// checkExplained: everybody who may be used and shares something is explained, exactly the chosen are called chosen.
func checkExplained(t *testing.T, d Decision, want answer, s uint64) {
	for _, c := range d.Candidates {
		require.Equal(t, slices.Contains(want.chosen, c.Name), c.Verdict == VerdictChosen, "seed %d: %s: %s", s, c.Name, c.Why)
		require.NotEmpty(t, c.Why, "seed %d: %s is %s", s, c.Name, c.Verdict)
		require.Equal(t, want.unusable[c.Name] != "", slices.Contains(
			[]Verdict{VerdictNotReady, VerdictExpired, VerdictPlatform, VerdictUnreachable}, c.Verdict), "seed %d: %s is %s", s, c.Name, c.Verdict)
		if v := want.unusable[c.Name]; v != "" {
			require.Equal(t, v, c.Verdict, "seed %d: %s", s, c.Name)
		}
	}
	for _, name := range want.sharing {
		require.Contains(t, verdicts(d), name, "seed %d", s)
	}
}

func sorted(fleet map[string]Candidate) []Candidate {
	var out []Candidate
	for _, c := range fleet {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Candidate) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// generator makes small worlds in which everything collides: few layers, few names, few sizes.
type generator struct{ *rand.Rand }

func (g *generator) oneIn(n int) bool { return g.IntN(n) == 0 }

func (g *generator) image() Image {
	layers := make([]string, 1+g.IntN(4))
	for i := range layers {
		// The size is the layer's own, as with real layers.
		n := g.IntN(6)
		layers[i] = fmt.Sprintf("%d:%d:%d", n, 1+n*n*10, 2+n*15)
	}
	i := img(fmt.Sprintf("app%d:1", g.IntN(4)), layers...)
	if g.oneIn(8) {
		i.Platform = arm64
	}
	return i
}

func (g *generator) candidate(n int) Candidate {
	var images []Image
	for range 1 + g.IntN(2) {
		images = append(images, g.image())
	}
	c := snap(fmt.Sprintf("s%d", n), g.IntN(3), images...)
	c.Attached = g.oneIn(4)
	switch g.IntN(16) {
	case 0:
		c.State = "Creating"
	case 1:
		c.Expires = noon.Add(-time.Hour)
	case 2:
		c.Unreachable = "far away"
	case 3:
		c.Expires = noon.Add(time.Hour)
	case 4:
		c.Layers = nil
	case 5: // a disk with holes
		c.Layers = slices.DeleteFunc(c.Layers, func(Layer) bool { return g.oneIn(3) })
	case 6:
		c.Layers = slices.Clone(c.Layers)
		for i := range c.Layers {
			c.Layers[i].StackBound = g.oneIn(2)
		}
	case 7:
		for i := range c.Images {
			c.Images[i].ManifestDigest = ""
		}
	case 8:
		c.Images = nil
	}
	return c
}

func (g *generator) change(t *testing.T, x *Index, fleet map[string]Candidate) {
	for range 3 + g.IntN(12) {
		c := g.candidate(g.IntN(9))
		switch g.IntN(5) {
		case 0:
			_, there := fleet[c.ID]
			require.Equal(t, there, x.Remove(c.ID))
			delete(fleet, c.ID)
		case 1:
			old, there := fleet[c.ID]
			require.Equal(t, there, x.SetAttached(c.ID, c.Attached))
			if there {
				old.Attached = c.Attached
				fleet[c.ID] = old
			}
		default:
			require.NoError(t, x.Put(c))
			fleet[c.ID] = c
		}
	}
	require.Equal(t, len(fleet), x.Len())
}

func (g *generator) request() Request {
	r := Request{Now: noon, Explain: 100}
	for range 1 + g.IntN(5) {
		i := g.image()
		switch g.IntN(8) {
		case 0:
			i = named(i)
		case 1:
			i.ManifestDigest = ""
		case 2:
			i.Layers[0].Present = true
		case 3:
			i.Layers[g.IntN(len(i.Layers))].Present = true
		case 4:
			i = only(i, []string{"chain", "diff", "blob"}[g.IntN(3)])
		case 5: // the same layer compressed in another way
			n := g.IntN(len(i.Layers))
			i.Layers[n].Blob, i.Layers[n].CompressedBytes = digest.FromString(fmt.Sprint("zstd", i.Layers[n].DiffID)), int64(1+g.IntN(40))
		}
		r.Images = append(r.Images, i)
	}
	r.Rules = Rules{AutoMatch: !g.oneIn(8), Order: Order(g.IntN(4)), MaxAttach: g.IntN(5), AttachCostBytes: []int64{0, 0, 0, 10, 30, 200}[g.IntN(6)]}
	if g.oneIn(2) {
		r.Rules.Order = OrderSaved
	}
	r.Rules.PerfectMatch, r.Rules.MatchCount = g.oneIn(16), max(0, g.IntN(24)-20)
	if g.oneIn(4) {
		n := g.IntN(9)
		r.Rules.Pin = []Pin{{Name: fmt.Sprintf("s%d", n)}, {ID: fmt.Sprintf("id-s%d", n)}, {Name: fmt.Sprintf("id-s%d", n), NameOrID: true}}[g.IntN(3)]
		r.Rules.Conflict, r.Rules.RejectIfUnavailable, r.Rules.PinNeedsMatch = ConflictPolicy(g.IntN(4)), g.oneIn(2), g.oneIn(4)
	}
	return r
}
