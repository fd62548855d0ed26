package tree_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
)

const acl = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x06\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff" +
	"\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"

// randomLayer makes an archive of entries that get in each other's way as often as possible: few names, links to
// everything, every type.
func randomLayer(t testing.TB, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	name := func() string {
		parts := make([]string, 1+rng.IntN(4))
		for i := range parts {
			parts[i] = pick("a", "b", "c", "a", "b", "..", ".", "l", ".wh.x")
		}
		if rng.IntN(12) == 0 {
			parts = append(parts, pick(".wh.a", ".wh.b", ".wh.l", ".wh..wh..opq"))
		}
		return pick("", "", "", "/", "./") + path.Join(strings.Join(parts, "/"), pick("", "n"))
	}
	l := layertest.NewTar(t)
	for range 1 + rng.IntN(14) {
		h := tar.Header{
			Name: name(), Mode: int64(rng.IntN(0o10000)), Uid: rng.IntN(3), Gid: rng.IntN(3),
			ModTime: time.Unix(int64(1000+rng.IntN(1000)), int64(rng.IntN(1e9))),
		}
		if rng.IntN(4) == 0 {
			h.PAXRecords = layertest.Xattrs(pick("user.a", "user.b", "security.c", "trusted.d"), pick("1", "2", ""))
		}
		if rng.IntN(6) == 0 {
			h.PAXRecords = layertest.Xattrs(pick("system.posix_acl_default", "system.posix_acl_access"), acl)
		}
		data := ""
		switch rng.IntN(10) {
		case 0, 1, 2:
			h.Typeflag, data = tar.TypeReg, pick("", "x", "some data")
		case 3, 4, 5:
			h.Typeflag = tar.TypeDir
		case 6:
			h.Typeflag, h.Linkname = tar.TypeLink, name()
		case 7, 8:
			h.Typeflag, h.Linkname = tar.TypeSymlink, name()
		case 9:
			h.Typeflag = tar.TypeFifo
		}
		l.Add(h, data)
	}
	return l.Bytes()
}

// TestRandomLayersEqualApply lets containerd judge hundreds of small odd layers: it must take what we take, refuse what
// we refuse, and leave the same tree.
func TestRandomLayersEqualApply(t *testing.T) {
	needRoot(t)
	scratch := layertest.Scratch(t)
	taken := 0
	for seed := range uint64(600) {
		layer := randomLayer(t, seed)
		dir, aerr := scratch.Apply(t, layer)
		tr, err := read(t, layer)
		if aerr != nil {
			require.ErrorIs(t, err, tree.ErrInvalid, "seed %d: containerd says %v", seed, aerr)
			continue
		}
		require.NoError(t, err, "seed %d", seed)
		require.Equal(t, applied(t, dir), asSeen(t, tr), "seed %d", seed)
		taken++
	}
	require.Greater(t, taken, 60, "too few layers are good ones")
}

func TestData(t *testing.T) {
	var data bytes.Buffer
	l := layertest.NewTar(t)
	contents := map[string]string{}
	rng := rand.New(rand.NewPCG(7, 7))
	for i, size := range []int{0, 1, 4095, 4096, 4097, 1<<20 - 1, 1 << 20, 5<<20 + 3, 0, 12} {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		name := fmt.Sprint(i)
		contents[name] = string(b)
		l.File(name, string(b))
	}
	zeros := strings.Repeat("\x00", 3<<20)
	contents["hole"] = "begin" + zeros + "end"
	l.File("hole", contents["hole"]).File("again", "1").File("again", "22").Link("linked", "again")
	contents["again"], contents["linked"] = "22", "22"

	layer, err := tree.Read(t.Context(), bytes.NewReader(l.Bytes()), &data, tree.Limits{})
	require.NoError(t, err)
	tr, err := layer.On(nil)
	require.NoError(t, err)
	require.EqualValues(t, tr.Blocks*tree.BlockSize, data.Len())
	for _, c := range tr.Children(tree.Root) {
		in := tr.Inode(c.Inode)
		want := contents[c.Name]
		require.EqualValues(t, len(want), in.Size)
		got := make([]byte, (len(want)+tree.BlockSize-1)/tree.BlockSize*tree.BlockSize)
		runs := []tree.Run{{FirstBlock: in.FirstBlock, Blocks: uint32(len(got) / tree.BlockSize)}}
		require.Equal(t, c.Name == "hole", in.Sparse)
		if in.Sparse {
			runs = in.Runs
		}
		for _, r := range runs {
			copy(got[int(r.FileBlock)*tree.BlockSize:], data.Bytes()[int(r.FirstBlock)*tree.BlockSize:][:int(r.Blocks)*tree.BlockSize])
		}
		require.True(t, bytes.Equal([]byte(want), got[:len(want)]), c.Name)
		require.Equal(t, make([]byte, len(got)-len(want)), got[len(want):], "padding of %s", c.Name)
	}
	unpacked := int64(-2) // "again" counts once
	for e := range tr.Entries() {
		if e.Type == attrs.Regular {
			unpacked += e.Size
		}
		if e.Type == attrs.Regular && e.HardLink == "" {
			require.Equal(t, blake3.Sum256([]byte(contents[e.Path])), e.Content, e.Path)
		}
	}
	require.Equal(t, unpacked, tr.UnpackedBytes)
	require.EqualValues(t, len(contents), tr.Inodes) // the root instead of the hard link
}

func TestSparseArchive(t *testing.T) {
	// A file of 4 MiB of which the archive holds only 5 bytes at 2 MiB, in the form that GNU tar --sparse --format=pax
	// writes.
	sparse := "1\n2097152\n5\n"
	body := sparse + strings.Repeat("\x00", 512-len(sparse)) + "hello"
	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse", "GNU.sparse.realsize": "4194304",
	}
	layer := paxEntry(t, records, body)
	var data bytes.Buffer
	l, err := tree.Read(t.Context(), bytes.NewReader(layer), &data, tree.Limits{})
	require.NoError(t, err)
	require.Equal(t, 65536, data.Len())
	tr, err := l.On(nil)
	require.NoError(t, err)
	in := tr.Inode(tr.Children(tree.Root)[0].Inode)
	require.EqualValues(t, 4<<20, in.Size)
	needRoot(t)
	dir, err := layertest.Apply(t, layer)
	require.NoError(t, err)
	require.Equal(t, applied(t, dir), asSeen(t, tr))
}

// paxEntry makes an archive of one file with extended records that archive/tar does not write.
func paxEntry(t testing.TB, records map[string]string, body string) []byte {
	t.Helper()
	var pax strings.Builder
	for _, k := range []string{"GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name", "GNU.sparse.realsize"} {
		record := fmt.Sprintf(" %s=%s\n", k, records[k])
		n := len(record) + 2
		require.Less(t, n, 100)
		pax.WriteString(fmt.Sprint(n) + record)
	}
	x := patched(t, pax.Len(), func(h []byte) { h[156] = 'x' })
	copy(x[512:], pax.String())
	f := patched(t, len(body), func(h []byte) {})
	copy(f[512:], body)
	return append(x[:1024], f...)
}

func TestLongestPath(t *testing.T) {
	longest := strings.Repeat(strings.Repeat("n", 255)+"/", 15) + strings.Repeat("n", 255)
	require.Len(t, longest, 4095)
	tr, err := read(t, layertest.NewTar(t).File(longest, "x").Symlink(longest, strings.Repeat("t", 4095)).Bytes())
	require.NoError(t, err)
	require.Contains(t, asSeen(t, tr), longest)
}

// TestStackBound: what a layer is on another stack is not known from a layer that puts something into a directory which
// it has not mentioned yet, or from one at the bottom that removes names.
func TestStackBound(t *testing.T) {
	for _, c := range []struct {
		layer                    *layertest.Tar
		bound, bottom, different bool
	}{
		{layertest.NewTar(t).Dir("a", 0o755).File("a/f", "x").File("g", "x"), false, false, false},
		{layertest.NewTar(t).File("a/f", "x"), true, true, false},
		{layertest.NewTar(t).File("a/f", "x").Dir("a", 0o755), true, true, false},
		{layertest.NewTar(t).File(".wh.f", ""), false, true, true},
		{layertest.NewTar(t).Dir("a", 0o755).File("a/.wh..wh..opq", ""), false, true, true},
	} {
		l, err := tree.Read(t.Context(), bytes.NewReader(c.layer.Bytes()), io.Discard, tree.Limits{})
		require.NoError(t, err)
		require.Equal(t, c.different, l.Whiteouts())
		on, err := l.On([]*tree.Tree{bottom(t)})
		require.NoError(t, err)
		require.Equal(t, c.bound, on.StackBound())
		below, err := l.On(nil)
		require.NoError(t, err)
		require.Equal(t, c.bottom, below.StackBound())
		require.Equal(t, c.different, !on.Same(below))
	}
}

func TestEntriesOrderAndAbort(t *testing.T) {
	tr, err := read(t, layertest.NewTar(t).File("a/b", "").File("a-b", "").File("!", "").File("a0", "").File(".a", "").File("a/-", "").Bytes())
	require.NoError(t, err)
	var paths []string
	for e := range tr.Entries() {
		paths = append(paths, e.Path)
	}
	require.Equal(t, []string{"!", ".", ".a", "a", "a-b", "a/-", "a/b", "a0"}, paths)
	for n := range len(paths) {
		seen := 0
		for range tr.Entries() {
			if seen++; seen > n {
				break
			}
		}
		require.Equal(t, n+1, seen)
	}
}

// FuzzRead runs best with -fuzzminimizetime 10x: what a second goroutine covers varies, which keeps minimizing busy.
func FuzzRead(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(randomLayer(f, seed))
	}
	f.Fuzz(func(t *testing.T, layer []byte) {
		var size countingWriter
		l, err := tree.Read(t.Context(), bytes.NewReader(layer), &size, tree.Limits{MaxBytes: 16 << 20, MaxEntries: 10_000})
		if err != nil {
			require.Nil(t, l)
			return
		}
		require.EqualValues(t, l.Blocks*tree.BlockSize, size)
		tr, err := l.On(nil)
		if err == nil {
			tr, err = l.On([]*tree.Tree{tr})
		}
		if err != nil {
			require.Nil(t, tr)
			return
		}
		inodes := int64(0)
		for p, s := range asSeen(t, tr) {
			if s.Group == p {
				inodes++
			}
			if s.Mode&unix.S_IFMT == unix.S_IFLNK {
				require.NotEmpty(t, s.Target)
			}
			require.LessOrEqual(t, len(path.Base(p)), 255)
		}
		require.Equal(t, inodes, tr.Inodes)
	})
}

type countingWriter int64

func (w *countingWriter) Write(b []byte) (int, error) {
	*w += countingWriter(len(b))
	return len(b), nil
}

var _ io.Writer = (*countingWriter)(nil)
