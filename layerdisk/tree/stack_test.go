package tree_test

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
)

// TestStacks are images in which it matters when containerd does something, and where a layer lies. Each is compared
// with containerd in all, and one name of its top layer with what is expected.
func TestStacks(t *testing.T) {
	needRoot(t)
	at := func(sec int64) time.Time { return time.Unix(sec, 0) }
	dir := func(l *layertest.Tar, name string, mode int64, gid int, records map[string]string) *layertest.Tar {
		return l.Add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Gid: gid, PAXRecords: records, ModTime: at(1_600_000_000)}, "")
	}
	layer := func() *layertest.Tar { return layertest.NewTar(t) }
	access := "\"system.posix_acl_access\""
	for name, c := range map[string]struct {
		layers []*layertest.Tar
		look   string
		want   func(t *testing.T, s layertest.Seen)
		gone   []string
	}{
		"attribute from below, then mentioned": {
			[]*layertest.Tar{dir(layer(), "a/", 0o755, 0, layertest.Xattrs("user.k", "1")), dir(layer().File("a/f", "x"), "a/", 0o711, 0, nil)},
			"a", func(t *testing.T, s layertest.Seen) {
				require.Equal(t, "\"user.k\"=31\n", s.Xattrs)
				require.EqualValues(t, 0o711, s.Mode&0o7777)
			}, nil,
		},
		"group from below, then mentioned": {
			[]*layertest.Tar{dir(layer(), "a/", 0o2755, 2, nil), dir(layer().File("a/b/f", "x"), "a/", 0o755, 0, nil)},
			"a/b", func(t *testing.T, s layertest.Seen) { require.EqualValues(t, 2, s.GID) }, nil,
		},
		"group mentioned too late": {
			[]*layertest.Tar{dir(layer().File("a/b/f", "x"), "a/", 0o2755, 1, nil)},
			"a/b", func(t *testing.T, s layertest.Seen) { require.EqualValues(t, 0, s.GID) }, nil,
		},
		"time from below": {
			[]*layertest.Tar{dir(layer(), "d/", 0o755, 0, nil).File("d/x", "x"), layer().File("d/.wh..wh..opq", "")},
			"d", func(t *testing.T, s layertest.Seen) {
				require.Equal(t, "1600000000.000000000", s.Mtime)
				require.Equal(t, "\"trusted.overlay.opaque\"=79\n", s.Xattrs)
			}, nil,
		},
		"time from the clock": {
			[]*layertest.Tar{dir(layer(), "d/", 0o755, 0, nil), layer().File("d/.wh..wh..opq", "").File("d/y", "")},
			"d", func(t *testing.T, s layertest.Seen) { require.Equal(t, "0.000000000", s.Mtime) }, nil,
		},
		"default ACL from below": {
			[]*layertest.Tar{dir(layer(), "d/", 0o755, 0, layertest.Xattrs("system.posix_acl_default", acl)), layer().File("d/e/f", "x")},
			"d/e/f", func(t *testing.T, s layertest.Seen) { require.Contains(t, s.Xattrs, access) }, nil,
		},
		"whiteout at the bottom": {
			[]*layertest.Tar{layer().Dir("d", 0o755).File("d/x", "x").File("d/.wh.x", "").File(".wh.never", "")},
			"d", func(t *testing.T, s layertest.Seen) { require.EqualValues(t, 0o755, s.Mode&0o7777) }, []string{"d/x", "never"},
		},
		"whiteout at the bottom, then again": {
			[]*layertest.Tar{layer().Dir("d", 0o755).File("d/x", "x").File("d/.wh.x", "").File("d/x", "again")},
			"d/x", func(t *testing.T, s layertest.Seen) { require.EqualValues(t, 5, s.Size) }, nil,
		},
		"opaque at the bottom": {
			[]*layertest.Tar{layer().File("d/e/f", "x").Dir("d", 0o755).File("d/.wh..wh..opq", "")},
			"d", func(t *testing.T, s layertest.Seen) { require.Empty(t, s.Xattrs) }, []string{"d/e"},
		},
		"opaque at the bottom spares what the layer made": {
			[]*layertest.Tar{layer().Dir("d", 0o755).Dir("d/e", 0o755).File("d/e/f", "x").File("d/.wh..wh..opq", "")},
			"d/e/f", func(t *testing.T, s layertest.Seen) { require.Empty(t, s.Xattrs) }, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			scratch := layertest.Scratch(t)
			var dirs []string
			var trees []*tree.Tree
			var top map[string]layertest.Seen
			for _, l := range c.layers {
				b := l.Bytes()
				d, err := scratch.ApplyOn(t, b, dirs...)
				require.NoError(t, err)
				read, err := tree.Read(t.Context(), bytes.NewReader(b), io.Discard, tree.Limits{})
				require.NoError(t, err)
				tr, err := read.On(trees)
				require.NoError(t, err)
				top = asSeen(t, tr)
				require.Equal(t, applied(t, d), top)
				dirs, trees = append([]string{d}, dirs...), append([]*tree.Tree{tr}, trees...)
			}
			require.Contains(t, top, c.look)
			c.want(t, top[c.look])
			for _, p := range c.gone {
				require.NotContains(t, top, p)
			}
			for p, s := range top {
				require.False(t, len(c.layers) == 1 && s.Mode&unix.S_IFMT == unix.S_IFCHR, p)
			}
		})
	}
}

// What containerd refuses on some stacks is refused on those alone.
func TestRefusedOnStack(t *testing.T) {
	needRoot(t)
	file := layertest.NewTar(t).File("a", "x").Bytes()
	for name, c := range map[string]struct {
		lower [][]byte
		layer []byte
		fine  bool
	}{
		"below a file of the lower layer":   {[][]byte{file}, layertest.NewTar(t).File("a/b/c", "x").Bytes(), false},
		"in place of a file":                {[][]byte{file}, layertest.NewTar(t).File("a/b", "x").Bytes(), true},
		"alone":                             {nil, layertest.NewTar(t).File("a/b/c", "x").Bytes(), true},
		"removes its own on others":         {[][]byte{file}, layertest.NewTar(t).File("f", "x").File(".wh.f", "").Bytes(), false},
		"removes its own at the bottom":     {nil, layertest.NewTar(t).File("f", "x").File(".wh.f", "").Bytes(), true},
		"removes a directory at the bottom": {nil, layertest.NewTar(t).Dir("d", 0o755).File(".wh.d", "").Bytes(), false},
	} {
		t.Run(name, func(t *testing.T) {
			scratch := layertest.Scratch(t)
			var dirs []string
			var trees []*tree.Tree
			for i, b := range append(c.lower, c.layer) {
				d, aerr := scratch.ApplyOn(t, b, dirs...)
				l, err := tree.Read(t.Context(), bytes.NewReader(b), io.Discard, tree.Limits{})
				require.NoError(t, err)
				tr, err := l.On(trees)
				if i == len(c.lower) && !c.fine {
					require.Error(t, aerr, "containerd takes it")
					require.ErrorIs(t, err, tree.ErrInvalid)
					return
				}
				require.NoError(t, aerr)
				require.NoError(t, err)
				dirs, trees = append([]string{d}, dirs...), append([]*tree.Tree{tr}, trees...)
			}
		})
	}
}
