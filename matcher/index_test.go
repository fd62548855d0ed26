package matcher_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"
)

// TestChanges follows one candidate through its life.
func TestChanges(t *testing.T) {
	x := NewIndex()
	r := auto(nginx)
	require.Empty(t, names(match(t, x, r)))
	require.False(t, x.Remove("id-a"))
	require.False(t, x.SetAttached("id-a", true))

	require.NoError(t, x.Put(but(snap("a", 1, nginx), func(c *Candidate) { c.State = "Creating" })))
	require.Equal(t, map[string]Verdict{"a": VerdictNotReady}, verdicts(match(t, x, r)))
	require.NoError(t, x.Put(snap("a", 1, nginx)))
	require.Equal(t, []string{"a"}, names(match(t, x, r)))
	require.True(t, x.SetAttached("id-a", true))
	require.True(t, match(t, x, r).Chosen[0].Attached)

	// Another content.
	require.NoError(t, x.Put(snap("a", 1, busybox)))
	require.Empty(t, names(match(t, x, r)))
	require.Equal(t, []string{"a"}, names(match(t, x, auto(busybox))))
	require.False(t, match(t, x, auto(busybox)).Chosen[0].Attached, "a replacement brings all its state")

	// Another name under the same ID, the old name is free.
	require.NoError(t, x.Put(but(snap("b", 1, nginx), func(c *Candidate) { c.ID = "id-a" })))
	require.Equal(t, 1, x.Len())
	require.Equal(t, []string{"b"}, names(match(t, x, r)))
	d := match(t, x, ruled(r, func(r *Rules) { r.Pin.Name = "a" }))
	require.Contains(t, d.Reason, `"a" does not exist`)

	require.True(t, x.Remove("id-a"))
	require.Zero(t, x.Len())
	d = match(t, x, r)
	require.Zero(t, d.Considered)
	require.True(t, d.NothingMatched)
}

// TestCallerKeepsItsSlices shows that the index does not see what happens to a candidate after Put.
func TestCallerKeepsItsSlices(t *testing.T) {
	c := snap("a", 1, nginx)
	x := fleet(t, c)
	c.Images[0] = CandidateImage{}
	clear(c.Layers)
	require.Equal(t, Saving{DownloadBytes: 71}, match(t, x, auto(nginx)).Saved)
}

// TestEmptied puts many candidates in and out again, in random order, and then finds nothing of them, while one that
// shares everything with them is still whole.
func TestEmptied(t *testing.T) {
	x := fleet(t, snap("stays", 1, nginx, redis, busybox))
	ids := []string{}
	for i := range 200 {
		c := snap(fmt.Sprintf("s%d", i), i, nginx, redis, img(fmt.Sprintf("own%d:1", i), "debian:30:70", fmt.Sprintf("own%d:5", i)))
		c.Layers = append(c.Layers, c.Layers[0], Layer{}) // named twice, named by nothing
		c.Images = append(c.Images, c.Images[0])
		require.NoError(t, x.Put(c))
		ids = append(ids, c.ID)
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	for _, id := range ids {
		require.True(t, x.Remove(id))
		require.False(t, x.Remove(id))
	}
	d := match(t, x, auto(nginx, redis, busybox, img("own7:1", "debian:30:70", "own7:5")))
	require.Equal(t, 1, d.Considered)
	require.Equal(t, []string{"stays"}, names(d))
	require.Equal(t, Saving{DownloadBytes: 83}, d.Saved)
}

// TestSameForAll shows that the order in which a fleet becomes known, and what was there before, do not change the
// choice.
func TestSameForAll(t *testing.T) {
	g := &generator{rand.New(rand.NewPCG(1, 2))}
	for range 200 {
		fleet := make(map[string]Candidate)
		a, b := NewIndex(), NewIndex()
		g.change(t, a, fleet)
		cs := sorted(fleet)
		g.Shuffle(len(cs), func(i, j int) { cs[i], cs[j] = cs[j], cs[i] })
		for _, c := range cs {
			require.NoError(t, b.Put(c))
		}
		for range 5 {
			r := g.request()
			require.Equal(t, match(t, a, r), match(t, b, r))
		}
	}
}

// TestConcurrent matches while the fleet changes; each answer has to be one that was right at some time.
func TestConcurrent(t *testing.T) {
	x := fleet(t, snap("always", 9, nginx))
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for w := range 2 {
		writers.Go(func() {
			for i := range 300 {
				c := snap(fmt.Sprintf("w%d", w), 1, nginx, redis)
				if i%3 == 2 {
					x.Remove(c.ID)
				} else {
					assertNoError(t, x.Put(c))
					x.SetAttached(c.ID, i%2 == 0)
				}
			}
		})
	}
	for range 3 {
		readers.Go(func() {
			for {
				d, err := x.Match(auto(nginx))
				assertNoError(t, err)
				if len(d.Chosen) == 0 || d.Saved.DownloadBytes != 71 {
					t.Errorf("chose %v, saves %v", d.Chosen, d.Saved)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}

func assertNoError(t *testing.T, err error) {
	if err != nil {
		t.Error(err)
	}
}
