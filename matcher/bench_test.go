package matcher_test

import (
	"fmt"
	"runtime"
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
