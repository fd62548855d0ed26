package erofs_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/layerdisk/erofs"
	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
)

// restoreLayer reads a layer back from a finished disk, with the listing that a disk keeps beside it.
func restoreLayer(t testing.TB, file, dir string, listing []attrs.Entry) (*tree.Tree, uint32) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	r, err := erofs.Open(f)
	require.NoError(t, err)
	stored := map[string]tree.Stored{}
	require.NoError(t, r.Walk(t.Context(), dir, func(name string, n erofs.Node) error {
		stored[name] = tree.Stored{FirstBlock: n.FirstBlock, Sparse: n.Sparse, Runs: n.Runs, Xattrs: n.Xattrs}
		return nil
	}))
	require.Len(t, stored, len(listing), "nothing but what is listed")
	got, first, err := tree.Restore(listing, func(p string) (tree.Stored, bool) { s, ok := stored[p]; return s, ok }, false, nil)
	require.NoError(t, err)
	return got, first
}

func tricky(t testing.TB) []byte {
	holes := strings.Repeat("\x00", 2<<20) + "data" + strings.Repeat("\x00", 3<<20) + strings.Repeat("x", 70<<10)
	w := layertest.NewTar(t).File("d/f", "x").File("d/empty", "").File("holes", holes).File("zeros", strings.Repeat("\x00", 4<<20)).
		Symlink("l", strings.Repeat("t", 4095)).Symlink("s", "d/f")
	for i := range 600 {
		w = w.File("many/"+strings.Repeat("n", 60)+base36(i), base36(i))
	}
	return w.Bytes()
}

// TestRestore: writing what was read back gives the same bytes, but for nothing.
func TestRestore(t *testing.T) {
	layers := [][]byte{tricky(t), layertest.NewTar(t).File("other", strings.Repeat("o", 9000)).Bytes(), layertest.NewTar(t).Bytes()}
	file, _ := writeImage(t, nil, layers...)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	img := readLayers(t, f, layers...) // the same data at the same place
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	for i, l := range img.Layers {
		listing := slices.Collect(l.Tree.Entries())
		got, first := restoreLayer(t, file, l.Path, listing)
		require.Equal(t, listing, slices.Collect(got.Entries()))
		require.Equal(t, l.Tree.Inodes, got.Inodes)
		require.Equal(t, l.Tree.UnpackedBytes, got.UnpackedBytes)
		require.LessOrEqual(t, got.Blocks, l.Tree.Blocks)
		img.Layers[i].Tree = got
		img.Layers[i].FirstBlock = max(1, uint64(first))
	}
	layout, err := erofs.Plan(img)
	require.NoError(t, err)
	require.NoError(t, layout.Write(t.Context(), f))
	require.NoError(t, layout.Commit(t.Context(), f, bytes.Repeat([]byte{0x5a}, erofs.HeaderSize)))
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

func TestReadXattrs(t *testing.T) {
	layer := layertest.NewTar(t).Add(tarFile("f", map[string]string{
		"SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.selinux": "label", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}), "content").Bytes()
	file, _ := writeImage(t, nil, layer)
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	img := readLayers(t, &discard{}, layer)
	got, _ := restoreLayer(t, file, "l/0", slices.Collect(img.Layers[0].Tree.Entries()))
	n := got.Children(tree.Root)[0].Inode
	require.Equal(t, img.Layers[0].Tree.Inode(img.Layers[0].Tree.Children(tree.Root)[0].Inode).Xattrs, got.Inode(n).Xattrs,
		"also what is not listed")
}

type discard struct{}

func (*discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestReadRefuses(t *testing.T) {
	_, err := erofs.Open(bytes.NewReader(make([]byte, 100)))
	require.ErrorIs(t, err, erofs.ErrDamaged)
	require.True(t, errdefs.IsDataLoss(err))
	_, err = erofs.Open(bytes.NewReader(make([]byte, 8192)))
	require.ErrorIs(t, err, erofs.ErrDamaged)
	file, _ := writeImage(t, nil, tricky(t))
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	r, err := erofs.Open(bytes.NewReader(b))
	require.NoError(t, err)
	for _, dir := range []string{"none", "l/1", "l/0/d/f/x"} {
		err := r.Walk(t.Context(), dir, func(string, erofs.Node) error { return nil })
		require.Error(t, err, dir)
	}
	require.ErrorIs(t, r.Walk(t.Context(), "l/9", nil), fs.ErrNotExist)
	stop := errors.New("stop")
	require.ErrorIs(t, r.Walk(t.Context(), "l/0", func(string, erofs.Node) error { return stop }), stop)
	b[2000] ^= 1
	_, err = erofs.Open(bytes.NewReader(b))
	require.ErrorIs(t, err, erofs.ErrDamaged)
}

// FuzzRead changes bytes of the metadata of a real disk: whatever they are, reading ends, with an error of the class or
// with places that are on the disk.
func FuzzRead(f *testing.F) {
	file, layout := writeImage(f, nil, layertest.NewTar(f).File("d/f", "x").File("g", strings.Repeat("y", 5000)).Symlink("l", "d/f").
		File("holes", strings.Repeat("\x00", 2<<20)+"data").Bytes())
	good, err := os.ReadFile(file)
	require.NoError(f, err)
	meta := len(good) - int(layout.MetadataBytes())
	f.Add(uint16(0), []byte{1})
	f.Add(uint16(64), bytes.Repeat([]byte{0xff}, 64))
	f.Add(uint16(100), []byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, at uint16, change []byte) {
		b := bytes.Clone(good)
		for i, c := range change {
			b[meta+(int(at)+i)%(len(b)-meta)] ^= c
		}
		r, err := erofs.Open(bytes.NewReader(b))
		require.NoError(t, err)
		err = r.Walk(t.Context(), "l/0", func(_ string, n erofs.Node) error {
			if n.Mode&unix.S_IFMT == unix.S_IFREG && !n.Sparse && n.Size > 0 {
				require.LessOrEqual(t, (int64(n.FirstBlock)*tree.BlockSize)+n.Size, int64(len(b)))
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			require.ErrorIs(t, err, erofs.ErrDamaged)
		}
	})
}
