package attrs_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"berth.dev/berth/layerdisk/attrs"
)

func manyEntries(n int) []attrs.Entry {
	entries := make([]attrs.Entry, 0, n)
	for i := range n {
		entries = append(entries, attrs.Entry{
			Path: fmt.Sprintf("usr/lib/python3/dist-packages/package%06d/module.py", i), Type: attrs.Regular, Mode: 0o644,
			Size: int64(i), MtimeSec: 1700000000 + int64(i), Content: [32]byte{byte(i), byte(i >> 8), byte(i >> 16), 31: 7},
		})
	}
	return entries
}

func BenchmarkStore(b *testing.B) {
	entries := manyEntries(10000)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := attrs.Store(slices.Values(entries)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(entries)*b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkLoad(b *testing.B) {
	entries := manyEntries(10000)
	stored, _, err := attrs.Store(slices.Values(entries))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := attrs.Load(bytes.NewReader(stored), 1<<30); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(entries)*b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64(len(stored))/float64(len(entries)), "storedB/entry")
}

// BenchmarkFromDir lists a directory that every machine has, mostly from the page cache.
func BenchmarkFromDir(b *testing.B) {
	const dir = "/usr/share"
	n := 0
	for b.Loop() {
		entries, err := attrs.FromDir(b.Context(), dir)
		if err != nil {
			b.Fatal(err)
		}
		n = len(entries)
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "entries/s")
}
