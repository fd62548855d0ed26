package tree_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/layerdisk/tree"
)

func layerOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		h.Format = tar.FormatPAX
		require.NoError(t, w.WriteHeader(&h))
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// TestOn compares with containerd, which copies attributes of directories that a layer does not mention from the
// layers below.
func TestOn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := func(name string, mode int64, uid, gid int) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, Uid: uid, Gid: gid}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }
	named := dir("srv/", 0o2750, 5, 6)
	named.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "kept"}
	layers := [][]byte{
		layerOf(t, dir("tmp/", 0o1777, 0, 0), named, dir("gone/", 0o700, 1, 1), dir("old/", 0o711, 9, 9),
			tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "srv"}),
		layerOf(t, file(".wh.gone"), dir("old/", 0o722, 8, 8), file("srv/deep/below")),
		layerOf(t, file("tmp/x"), file("srv/deep/y"), file("gone/z"), file("old/.wh..wh..opq"), file("link/a"), file("new/b")),
	}
	var trees []*tree.Tree
	var read []*tree.Layer
	var lowerTrees []*tree.Tree
	var dirs []string
	for _, layer := range layers {
		d := t.TempDir()
		_, err := archive.Apply(t.Context(), d, bytes.NewReader(layer), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(dirs))
		require.NoError(t, err)
		require.NoError(t, os.Chmod(d, 0o755))
		dirs = append([]string{d}, dirs...)

		l, err := tree.Read(t.Context(), bytes.NewReader(layer), io.Discard, tree.Limits{})
		require.NoError(t, err)
		read = append(read, l)
		tr, err := l.On(lowerTrees)
		require.NoError(t, err)
		require.Equal(t, len(dirs) > 1, tr.StackBound(), len(dirs))
		trees = append(trees, tr)
		lowerTrees = append([]*tree.Tree{tr}, lowerTrees...)

		var want []attrs.Entry
		for e := range tr.Entries() {
			if e.Type == attrs.Directory || e.Type == attrs.CharDev {
				ts := []unix.Timespec{{Sec: e.MtimeSec, Nsec: int64(e.MtimeNsec)}, {Sec: e.MtimeSec, Nsec: int64(e.MtimeNsec)}}
				require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(d, e.Path), ts, unix.AT_SYMLINK_NOFOLLOW))
			}
			want = append(want, e)
		}
		got, err := attrs.FromDir(t.Context(), d)
		require.NoError(t, err)
		require.Empty(t, attrs.Diff(want, got))
	}
	other := []*tree.Tree{trees[0]}
	again, err := read[2].On(lowerTrees[1:])
	require.NoError(t, err)
	require.True(t, again.Same(trees[2]))
	on, err := read[2].On(other)
	require.NoError(t, err)
	require.False(t, on.Same(trees[2]), "gone is not hidden there")
	require.True(t, on.SharesContents(trees[2]))
	again, err = read[2].On(lowerTrees[1:])
	require.NoError(t, err)
	require.True(t, again.Same(trees[2]), "On changes nothing")
	on, err = read[0].On(other)
	require.NoError(t, err)
	require.True(t, on.Same(trees[0]))
}
