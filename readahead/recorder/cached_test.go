package recorder

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Both ways to ask see the same pages of a file.
func TestCachedPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	const pages = 300
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("x"), pages*os.Getpagesize()-100), 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Sync())
	fd := int(f.Fd())
	require.NoError(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	require.NoError(t, unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM))
	for _, page := range []int64{3, 4, 5, 77, pages - 1} {
		_, err := f.ReadAt(make([]byte, 1), page*pageSize())
		require.NoError(t, err)
	}
	type run struct{ page, pages int64 }
	want := []run{{3, 3}, {77, 1}, {pages - 1, 1}}
	var got []run
	require.NoError(t, cachedRanges(f, pages*pageSize()-100, func(offset, length int64) {
		got = append(got, run{offset / pageSize(), length / pageSize()})
	}))
	require.Equal(t, want, got)

	var resident []int64
	require.NoError(t, residentWithin(f, 0, pages*pageSize(), func(offset, _ int64) { resident = append(resident, offset/pageSize()) }))
	require.Equal(t, []int64{3, 4, 5, 77, pages - 1}, resident)
}
