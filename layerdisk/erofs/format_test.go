package erofs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/erofs"
	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
)

func requireFsck(t *testing.T, file string) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skip("needs fsck.erofs (Debian: erofs-utils)")
	}
	out, err := exec.CommandContext(t.Context(), fsck, "--extract", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestFsck(t *testing.T) {
	for name, layers := range map[string][][]byte{
		"without layers": nil,
		"empty layers":   {layertest.NewTar(t).Bytes(), layertest.NewTar(t).Bytes()},
		"no holes":       {layertest.NewTar(t).File("d/f", strings.Repeat("x", 3<<20)).Symlink("l", strings.Repeat("x", 4095)).Bytes()},
	} {
		t.Run(name, func(t *testing.T) {
			file, layout := writeImage(t, []erofs.File{{Path: "berth/index.json", Data: []byte("{}")}}, layers...)
			require.Zero(t, layout.Holes())
			requireFsck(t, file)
		})
	}
}

func TestSuperblockIsLast(t *testing.T) {
	needRoot(t)
	layer := layertest.NewTar(t).File("f", "x").Bytes()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	require.NoError(t, err)
	defer f.Close()
	layout, err := erofs.Plan(readLayers(t, f, layer))
	require.NoError(t, err)
	require.NoError(t, layout.Write(t.Context(), f))

	first := make([]byte, tree.BlockSize)
	_, err = f.ReadAt(first, 0)
	require.NoError(t, err)
	require.Equal(t, make([]byte, tree.BlockSize), first, "block 0 must not be touched before the commit")
	dev := attachLoop(t, f.Name())
	err = unix.Mount(dev, t.TempDir(), "erofs", unix.MS_RDONLY, "")
	require.ErrorIs(t, err, unix.EINVAL)

	header := []byte("BERTHDSK and more")
	require.NoError(t, layout.Commit(t.Context(), f, header))
	_, err = f.ReadAt(first, 0)
	require.NoError(t, err)
	require.Equal(t, append(header, make([]byte, 1024-len(header))...), first[:1024])
	require.Equal(t, uint32(0xe0f5e1e2), binary.LittleEndian.Uint32(first[1024:]))
	require.Equal(t, testUUID[:], first[1024+48:1024+64])
	require.Equal(t, uint32(0), binary.LittleEndian.Uint32(first[1024+80:]), "needs no feature newer than Linux 5.4")
	require.ErrorIs(t, layout.Commit(t.Context(), f, make([]byte, 513)), errdefs.ErrInvalidArgument)
}

func TestSuperblockChecksum(t *testing.T) {
	needRoot(t)
	file, _ := writeImage(t, nil, layertest.NewTar(t).File("f", "x").Bytes())
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	b[2000] ^= 1
	require.NoError(t, os.WriteFile(file, b, 0o600))
	err = unix.Mount(attachLoop(t, file), t.TempDir(), "erofs", unix.MS_RDONLY, "")
	require.Error(t, err, "the kernel must see a damaged superblock")
}

func TestOwnFiles(t *testing.T) {
	needRoot(t)
	files := []erofs.File{
		{Path: "berth/index.json", Data: bytes.Repeat([]byte("index"), 5000)},
		{Path: "berth/attrs/0", Data: []byte("listing")},
		{Path: "berth/attrs/1", Data: nil},
		{Path: "berth/block", Data: bytes.Repeat([]byte("b"), tree.BlockSize)},
	}
	file, layout := writeImage(t, files, layertest.NewTar(t).File("f", "x").Bytes())
	root := mountImage(t, file)
	raw, err := os.Open(file)
	require.NoError(t, err)
	defer raw.Close()
	for _, f := range files {
		got, err := os.ReadFile(filepath.Join(root, f.Path))
		require.NoError(t, err)
		require.True(t, bytes.Equal(f.Data, got))
		off, ok := layout.FileOffset(f.Path)
		require.True(t, ok)
		require.Zero(t, off%tree.BlockSize)
		got = make([]byte, len(f.Data))
		_, err = raw.ReadAt(got, off)
		require.NoError(t, err)
		require.True(t, bytes.Equal(f.Data, got), "raw bytes of %s", f.Path)
	}
	_, ok := layout.FileOffset("berth/none")
	require.False(t, ok)

	all := layertest.Look(t, root)
	dir := layertest.Seen{Mode: unix.S_IFDIR | 0o755, Nlink: 3, Mtime: "0.000000000"}
	for p, want := range map[string]layertest.Seen{"berth": dir, "l": dir, "berth/attrs": dir} {
		want.Group = p
		if p == "berth/attrs" {
			want.Nlink = 2
		}
		require.Equal(t, want, all[p], p)
	}
	require.Equal(t, uint32(unix.S_IFREG|0o644), all["berth/index.json"].Mode)
	require.Equal(t, "0.000000000", all["berth/index.json"].Mtime)
	require.Equal(t, uint32(4), all["."].Nlink)
}

func TestOverlayOfLayers(t *testing.T) {
	needRoot(t)
	base := layertest.NewTar(t).Dir("d", 0o755).File("d/base", "0").Dir("opaque", 0o755).File("opaque/hidden", "0").File("gone", "0").
		File("replaced", "0").Dir("dir-to-file", 0o755).File("dir-to-file/f", "0").Dir("gone-dir", 0o755).File("gone-dir/f", "0").Bytes()
	middle := layertest.NewTar(t).File("d/middle", "1").File(".wh.gone", "").Dir("opaque", 0o755).File("opaque/.wh..wh..opq", "").
		File("opaque/new", "1").File("replaced", "1").File("dir-to-file", "1").File("d/twice", "1").Bytes()
	top := layertest.NewTar(t).File("d/.wh.middle", "").File(".wh.gone-dir", "").Dir("gone-dir", 0o700).File("gone-dir/own", "2").
		File("d/twice", "2").Link("d/hard", "d/twice").Bytes()
	file, _ := writeImage(t, nil, base, middle, top)
	root := mountImage(t, file)
	merged := layertest.Mount(t, "overlay", "overlay", fmt.Sprintf("lowerdir=%[1]s/l/2:%[1]s/l/1:%[1]s/l/0", root), unix.MS_RDONLY)
	var got []string
	for p, s := range layertest.Look(t, merged) {
		if s.Mode&unix.S_IFMT == unix.S_IFREG {
			b, err := os.ReadFile(filepath.Join(merged, p))
			require.NoError(t, err)
			p += "=" + string(b)
		}
		got = append(got, p)
	}
	// gone-dir is there again: its whiteout and the new directory are one name in the top layer, so only the directory
	// stays, as with containerd, and what is below shows through.
	require.ElementsMatch(t, []string{
		".", "d", "d/base=0", "d/hard=2", "d/twice=2", "dir-to-file=1", "gone-dir", "gone-dir/f=0", "gone-dir/own=2", "opaque",
		"opaque/new=1", "replaced=1",
	}, got)
}

func TestHolesAreNotStored(t *testing.T) {
	needRoot(t)
	z := strings.Repeat("\x00", 8<<20)
	file, layout := writeImage(t, nil, layertest.NewTar(t).File("f", "a"+z+"b").Bytes())
	require.Equal(t, int64(1), layout.Holes())
	require.Less(t, layout.SizeBytes(), int64(1<<20))
	f, err := os.Open(filepath.Join(mountImage(t, file), "l/0/f"))
	require.NoError(t, err)
	defer f.Close()
	hole, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	require.NoError(t, err)
	require.Equal(t, int64(65536), hole)
}

// The list of chunks of this file takes more than a block, and its last run ends with the file, in the middle of a
// chunk.
func TestManyChunks(t *testing.T) {
	needRoot(t)
	data := strings.Repeat("d", 65536) + strings.Repeat("\x00", 80<<20) + strings.Repeat("e", 70_001)
	l := layertest.NewTar(t).File("before", "b")
	l.Add(tarFile("f", layertest.Xattrs("user.odd", "odd")), data)
	file, layout := writeImage(t, nil, l.File("z-after", "a").Bytes())
	require.Less(t, layout.SizeBytes(), int64(1<<20))
	requireFsck(t, file)
	root := filepath.Join(mountImage(t, file), "l/0")
	for name, want := range map[string]string{"before": "b", "f": data, "z-after": "a"} {
		got, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		require.True(t, want == string(got), name)
	}
}

func TestRefusedImages(t *testing.T) {
	read := func() *tree.Tree {
		read, err := tree.Read(t.Context(), bytes.NewReader(layertest.NewTar(t).File("f", "x").Bytes()), io.Discard, tree.Limits{})
		require.NoError(t, err)
		tr, err := read.On(nil)
		require.NoError(t, err)
		return tr
	}
	small := read()
	big := &tree.Tree{Blocks: 1 << 33}
	layer := func(path string, first uint64) erofs.Layer {
		return erofs.Layer{Path: path, Tree: small, FirstBlock: first}
	}
	for name, c := range map[string]struct {
		img  erofs.Image
		want error
	}{
		"no room for the superblock": {erofs.Image{DataEnd: 0}, errdefs.ErrResourceExhausted},
		"over 16 TiB":                {erofs.Image{DataEnd: 1 << 32}, errdefs.ErrResourceExhausted},
		"metadata over 16 TiB":       {erofs.Image{DataEnd: 1<<32 - 1}, errdefs.ErrResourceExhausted},
		"region in the superblock":   {erofs.Image{DataEnd: 9, Layers: []erofs.Layer{layer("l/0", 0)}}, errdefs.ErrInvalidArgument},
		"regions overlap":            {erofs.Image{DataEnd: 9, Layers: []erofs.Layer{layer("l/0", 1), {Path: "l/1", Tree: read(), FirstBlock: 1}}}, errdefs.ErrInvalidArgument},
		"region behind the end":      {erofs.Image{DataEnd: 2, Layers: []erofs.Layer{layer("l/0", 2)}}, errdefs.ErrInvalidArgument},
		"huge region":                {erofs.Image{DataEnd: 2, Layers: []erofs.Layer{{Path: "l/0", Tree: big, FirstBlock: 1}}}, errdefs.ErrInvalidArgument},
		"path twice":                 {erofs.Image{DataEnd: 9, Layers: []erofs.Layer{layer("l/0", 1), layer("l/0", 2)}}, errdefs.ErrInvalidArgument},
		"file in a layer":            {erofs.Image{DataEnd: 9, Layers: []erofs.Layer{layer("l/0", 1)}, Files: []erofs.File{{Path: "l/0/f"}}}, errdefs.ErrInvalidArgument},
		"layer above a layer":        {erofs.Image{DataEnd: 9, Layers: []erofs.Layer{layer("l/0", 1), layer("l", 2)}}, errdefs.ErrInvalidArgument},
		"absolute path":              {erofs.Image{DataEnd: 9, Files: []erofs.File{{Path: "/f"}}}, errdefs.ErrInvalidArgument},
		"climbing path":              {erofs.Image{DataEnd: 9, Files: []erofs.File{{Path: "a/../../f"}}}, errdefs.ErrInvalidArgument},
		"the root":                   {erofs.Image{DataEnd: 9, Files: []erofs.File{{Path: "."}}}, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := erofs.Plan(c.img)
			require.ErrorIs(t, err, c.want)
		})
	}
}

func TestTooLargeXattr(t *testing.T) {
	for name, set := range map[string]map[string]string{
		"value": layertest.Xattrs("user.x", strings.Repeat("v", 65536)),
		"sum": layertest.Xattrs("user.1", strings.Repeat("v", 65000), "user.2", strings.Repeat("v", 65000), "user.3", strings.Repeat("v", 65000),
			"user.4", strings.Repeat("v", 65000), "user.5", strings.Repeat("v", 65000)),
	} {
		t.Run(name, func(t *testing.T) {
			l := layertest.NewTar(t)
			l.Add(tarFile("f", set), "x")
			read, err := tree.Read(t.Context(), bytes.NewReader(l.Bytes()), io.Discard, tree.Limits{})
			require.NoError(t, err)
			tr, err := read.On(nil)
			require.NoError(t, err)
			_, err = erofs.Plan(erofs.Image{DataEnd: 2, Layers: []erofs.Layer{{Path: "l/0", Tree: tr, FirstBlock: 1}}})
			require.ErrorIs(t, err, erofs.ErrTooBig)
			require.ErrorContains(t, err, `"f"`)
		})
	}
}

// faultyWriter fails from the given write on.
type faultyWriter struct {
	f    io.WriterAt
	left atomic.Int64
}

var errFault = errors.New("fault")

func (w *faultyWriter) WriteAt(b []byte, off int64) (int, error) {
	if w.left.Add(-1) < 0 {
		return 0, errFault
	}
	return w.f.WriteAt(b, off)
}

func TestWriteErrorsLeaveNoFileSystem(t *testing.T) {
	l := layertest.NewTar(t)
	for i := range 20_000 {
		l.File(fmt.Sprintf("dir-%d/file-%d", i%100, i), "")
	}
	read, err := tree.Read(t.Context(), bytes.NewReader(l.Bytes()), io.Discard, tree.Limits{})
	require.NoError(t, err)
	tr, err := read.On(nil)
	require.NoError(t, err)
	layout, err := erofs.Plan(erofs.Image{DataEnd: 1, Layers: []erofs.Layer{{Path: "l/0", Tree: tr, FirstBlock: 1}}})
	require.NoError(t, err)
	for writes := int64(0); ; writes++ {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
		require.NoError(t, err)
		w := &faultyWriter{f: f}
		w.left.Store(writes)
		err = layout.Write(t.Context(), w)
		first := make([]byte, tree.BlockSize)
		_, rerr := f.ReadAt(first, 0)
		if rerr == nil {
			require.Equal(t, make([]byte, tree.BlockSize), first)
		}
		require.NoError(t, f.Close())
		if err == nil {
			require.Greater(t, writes, int64(1))
			break
		}
		require.ErrorIs(t, err, errFault)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	require.NoError(t, err)
	defer f.Close()
	require.ErrorIs(t, layout.Write(ctx, f), context.Canceled)
	require.ErrorIs(t, layout.Commit(ctx, f, nil), context.Canceled)
}
