package matcher_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"
)

// bigFleet has n image snapshots of 100 layers: ten images on one of the base stacks each, and otherwise layers of
// their own.
func bigFleet(b testing.TB, n, bases int) (x *Index, put time.Duration) {
	x = NewIndex()
	for i := range n {
		c := bigCandidate(i, bases)
		start := time.Now()
		require.NoError(b, x.Put(c))
		put += time.Since(start)
	}
	return x, put
}

func bigCandidate(i, bases int) Candidate {
	images := make([]Image, 0, 10)
	for j := range 10 {
		images = append(images, bigImage(i, j, bases))
	}
	return snap(fmt.Sprintf("snapshot-%05d", i), i, images...)
}

// bigImage has three layers of its base and as many of its own as make 100 distinct layers per image snapshot.
func bigImage(i, j, bases int) Image {
	base := i % bases
	layers := []string{fmt.Sprintf("base%d-0:30000000", base), fmt.Sprintf("base%d-1:5000000", base), fmt.Sprintf("base%d-2:1000000", base)}
	own := 10
	if j < 3 {
		own = 9 // 3 of the base and 97 of its own
	}
	for k := range own {
		layers = append(layers, fmt.Sprintf("own-%d-%d-%d:%d", i, j, k, 1000000+k))
	}
	return img(fmt.Sprintf("registry.example/team%d/app%d:v1", i, j), layers...)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// BenchmarkMatch finds one pod of ten images in fleets of different sizes and sharing. A fleet of 10,000 image
// snapshots has 1,000,000 layers, of which those of the bases are shared.
func BenchmarkMatch(b *testing.B) {
	for _, f := range []struct{ snapshots, bases int }{{100, 100}, {10000, 10000}, {10000, 500}, {10000, 50}, {10000, 1}} {
		before := heap()
		x, built := bigFleet(b, f.snapshots, f.bases)
		used := heap() - before
		shape := fmt.Sprintf("snapshots=%d/sharing-a-base=%d", f.snapshots, f.snapshots/f.bases)
		for _, o := range []Order{OrderSaved, OrderSize, OrderDegree} {
			b.Run(shape+"/"+o.String(), func(b *testing.B) {
				request := Request{Rules: Rules{AutoMatch: true, Order: o}, Now: noon}
				for j := range 10 {
					request.Images = append(request.Images, bigImage(f.snapshots/2, j, f.bases))
				}
				b.ReportAllocs()
				for b.Loop() {
					d, err := x.Match(request)
					if err != nil || len(d.Chosen) != 1 {
						b.Fatal(err, d.Chosen)
					}
				}
				b.ReportMetric(float64(used)/(1<<20), "index-MiB")
				b.ReportMetric(built.Seconds(), "index-s")
			})
		}
	}
}

// BenchmarkCandidates finds one pod of ten images where all of the fleet shares layers with it and nearly everyone has
// others of them, which is the hardest case: there is a choice among thousands of different candidates.
func BenchmarkCandidates(b *testing.B) {
	var pod []Image
	for j := range 10 {
		layers := []string{"base-0:30000000", "base-1:5000000"}
		for k := range 10 {
			layers = append(layers, fmt.Sprintf("app%d-%d:%d", j, k, 1000000+100*j+k))
		}
		layers = append(layers, "shared:500000")
		pod = append(pod, img(fmt.Sprintf("registry.example/app%d:v1", j), layers...))
	}
	for _, n := range []int{100, 5000, 20000} {
		g := rand.New(rand.NewPCG(uint64(n), 1))
		x := NewIndex()
		for i := range n {
			c := snap(fmt.Sprintf("snapshot-%05d", i), i, pod[g.IntN(10)], pod[g.IntN(10)])
			c.Layers = slices.DeleteFunc(c.Layers, func(Layer) bool { return g.IntN(8) == 0 })
			require.NoError(b, x.Put(c))
		}
		for _, cost := range []int64{0, 16_000_000} {
			b.Run(fmt.Sprintf("candidates=%d/cost=%d", n, cost), func(b *testing.B) {
				request := Request{Images: pod, Rules: Rules{AutoMatch: true, AttachCostBytes: cost}, Now: noon}
				b.ReportAllocs()
				for b.Loop() {
					d, err := x.Match(request)
					if err != nil || len(d.Chosen) == 0 {
						b.Fatal(err, d.Reason)
					}
				}
			})
		}
	}
}

// BenchmarkPut replaces the content of one image snapshot of a large fleet.
func BenchmarkPut(b *testing.B) {
	x, _ := bigFleet(b, 10000, 50)
	c := [2]Candidate{bigCandidate(77, 50), bigCandidate(77, 49)}
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		if err := x.Put(c[i%2]); err != nil {
			b.Fatal(err)
		}
	}
}
