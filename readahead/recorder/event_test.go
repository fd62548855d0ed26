package recorder

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseEvent(t *testing.T) {
	for line, want := range map[string]event{
		"             cat-30261   [000] ..... 12344.676727: mm_filemap_add_to_page_cache: dev 7:1 ino 1ea3a2 pfn=0x322026 ofs=8192 order=2": {
			micros: 12344676727, pid: 30261, dev: "7:1", inode: 0x1ea3a2, offset: 8192, length: 16384,
		},
		// Names of programs have what they like in them, and older kernels print the page's address, and no order.
		"  a b: [x]-1 c-7   [010] d..1.     1.000002: mm_filemap_add_to_page_cache: dev 0:3 ino 700001 page=00000000abc pfn=0x64 ofs=0": {
			micros: 1000002, pid: 7, dev: "0:3", inode: 0x700001, offset: 0, length: 4096,
		},
	} {
		got, ok := parseEvent(line, 4096)
		require.True(t, ok, line)
		require.Equal(t, want, got)
	}
	for _, line := range []string{
		"", "CPU:3 [LOST 123 EVENTS]", "x-1 [000] ..... 1.000002: other: dev 0:3 ino 1 ofs=0",
		"x-1 [000] ..... 1.000002: mm_filemap_add_to_page_cache: dev 0:3 ino zz ofs=0",
		"x-1 [000] ..... 1.000002: mm_filemap_add_to_page_cache: dev 0:3 ino 1 ofs=-4",
		"x-1 [000] ..... 1.000002: mm_filemap_add_to_page_cache: dev 0:3 ino 1 ofs=0 order=60",
		"x-1 [000] ..... 1.000002: mm_filemap_add_to_page_cache: ino 1 ofs=0",
		"x-1 [000] ..... never: mm_filemap_add_to_page_cache: dev 0:3 ino 1 ofs=0",
	} {
		_, ok := parseEvent(line, 4096)
		require.False(t, ok, line)
	}
	require.EqualValues(t, 123, parseLost("CPU:3 [LOST 123 EVENTS]"))
	require.EqualValues(t, 1, parseLost("CPU:3 [LOST EVENTS]"))
	require.Zero(t, parseLost("something else"))
}

func FuzzParseEvent(f *testing.F) {
	f.Add("cat-30261   [000] ..... 12344.676727: mm_filemap_add_to_page_cache: dev 7:1 ino 24 pfn=0x322026 ofs=0 order=0")
	f.Fuzz(func(t *testing.T, line string) {
		if e, ok := parseEvent(line, 4096); ok && (e.offset < 0 || e.length <= 0) {
			t.Fatalf("%q is %+v", line, e)
		}
		parseLost(line)
	})
}

func TestPartsAreInTheOrderOfFirstAccess(t *testing.T) {
	const page = 4096
	var p parts
	p.add(1, 0, page)
	p.add(2, 10*page, page)
	p.add(1, page, 2*page)   // behind it
	p.add(2, 9*page, page)   // before it
	p.add(1, 10*page, page)  // a small gap
	p.add(1, 100*page, page) // a large one
	p.add(1, 3*page, page)   // in the first part
	require.Equal(t, []part{{1, 0, 11 * page}, {2, 9 * page, 2 * page}, {1, 100 * page, page}}, p.list)

	var long parts
	for i := range int64(300) {
		long.add(1, i*page, page)
		long.add(2, 0, page)
	}
	require.Equal(t, []part{{1, 0, maxPart}, {2, 0, page}, {1, maxPart, maxPart}, {1, 2 * maxPart, 300*page - 2*maxPart}}, long.list)
}
