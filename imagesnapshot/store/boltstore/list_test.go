package boltstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/imagesnapshot/store/storetest"
)

// filled is a store of n image snapshots, in memory where that can be.
func filled(t testing.TB, n int) *boltstore.Store {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-test-")
	if err != nil {
		dir = t.TempDir()
	} else {
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	}
	s, err := boltstore.Open(filepath.Join(dir, "store.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	for i := range n {
		_, err := s.Create(t.Context(), storetest.Example(fmt.Sprintf("n%06d", i)))
		require.NoError(t, err)
	}
	return s
}

const page = 100

// A page costs its own length, whatever else there is: the same memory is taken for it.
func TestPageCostsItsLength(t *testing.T) {
	cost := func(n int) float64 {
		s := filled(t, n)
		tenant := storetest.Example("x").Owner
		return testing.AllocsPerRun(20, func() {
			for _, f := range []store.Filter{{}, {Owner: &tenant}} {
				f.After, f.Limit = fmt.Sprintf("n%06d", n/2), page
				list, err := s.List(t.Context(), f)
				require.NoError(t, err)
				require.Len(t, list, page)
			}
		})
	}
	few, many := cost(3*page), cost(10*page)
	require.InDelta(t, few, many, few/20)
}

// BenchmarkPage is a page from the middle of as many image snapshots as its name says.
func BenchmarkPage(b *testing.B) {
	for _, n := range []int{100, 5000, 50000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := filled(b, n)
			f := store.Filter{After: fmt.Sprintf("n%06d", n/2), Limit: page}
			for b.Loop() {
				if _, err := s.List(b.Context(), f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
