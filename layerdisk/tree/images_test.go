package tree_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
	"berth.dev/berth/test/harness/walk"
)

// images makes random images whose entries get in each other's way: few names, all types, links to everything,
// whiteouts, directories that are only implied, and the same things again in the layers above.
type images struct{ *walk.Walk }

func (w images) oneIn(n int) bool { return w.IntN(n) == 0 }

func (w images) pick(s ...string) string { return s[w.IntN(len(s))] }

func (w images) name() string {
	parts := make([]string, 1+w.IntN(4))
	for i := range parts {
		parts[i] = w.pick("a", "b", "c", "d", "a", "b")
		if w.oneIn(30) {
			parts[i] = w.pick("..", ".", "l", ".wh.x")
		}
	}
	return path.Join(strings.Join(parts, "/"), w.pick("", "n", "m"))
}

func (w images) whiteout() string {
	return path.Join(w.name(), w.pick(".wh..wh..opq", ".wh.a", ".wh.b", ".wh.n", ".wh.m", ".wh.l", ".wh..wh.plnk"))
}

func (w images) header() (h tar.Header, data string) {
	h = tar.Header{
		Name: w.name(), Mode: int64(w.IntN(0o10000)), Uid: w.IntN(3), Gid: w.IntN(3),
		ModTime: time.Unix(int64(1000+w.IntN(1000)), int64(w.IntN(1e9))),
	}
	if w.oneIn(20) {
		h.Uid, h.Gid = -1, -1
	}
	if w.oneIn(4) {
		h.PAXRecords = layertest.Xattrs(w.pick("user.a", "user.b", "security.c", "trusted.d"), w.pick("1", "2", ""))
	}
	if w.oneIn(8) {
		h.PAXRecords = layertest.Xattrs(w.pick("system.posix_acl_default", "system.posix_acl_access"), acl)
	}
	switch w.IntN(11) {
	case 0, 1, 2:
		h.Typeflag, data = tar.TypeReg, w.pick("", "x", "some data")
	case 3, 4, 5:
		h.Typeflag = tar.TypeDir
	case 6:
		h.Typeflag, h.Linkname = tar.TypeLink, w.name()
	case 7:
		h.Typeflag, h.Linkname = tar.TypeSymlink, w.pick("", "/", "../")+w.name()
	case 8:
		h.Typeflag = tar.TypeFifo
	default:
		h.Typeflag, h.Name, h.PAXRecords = tar.TypeReg, w.whiteout(), nil
	}
	if h.Typeflag != tar.TypeDir && h.PAXRecords["SCHILY.xattr.system.posix_acl_default"] != "" {
		h.PAXRecords = nil // refused, and with it nearly every image
	}
	return h, data
}

func (w images) layer() []byte {
	l := layertest.NewTar(w.T)
	for range 1 + w.IntN(10) {
		h, data := w.header()
		if w.oneIn(3) && !strings.Contains(h.Name, ".wh.") {
			l.Dir(path.Dir(path.Clean("/"+h.Name)), 0o755) // so that not all directories are implied
		}
		w.Note("  %c %-14s %04o %d:%d %q %q", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, h.PAXRecords)
		l.Add(h, data)
	}
	return l.Bytes()
}

// TestTrees compares random images with what containerd's unpacker makes of them, layer by layer: it must take what we
// take, refuse what we refuse, and leave the same tree with every attribute. "make test-trees" takes 10,000 images.
func TestTrees(t *testing.T) {
	needRoot(t)
	scratch := layertest.Scratch(t)
	layers, refused, bound := 0, 0, 0
	walk.Run(t, 100, 50, func(w *walk.Walk) {
		for n := range w.Steps {
			w.Note("image %d", n)
			var dirs []string
			var trees []*tree.Tree
			for tries := 3 + w.IntN(8); tries > 0; tries-- {
				w.Note(" layer %d", len(dirs))
				layer := images{w}.layer()
				dir, aerr := scratch.ApplyOn(w.T, layer, dirs...)
				l, err := tree.Read(w.Context(), bytes.NewReader(layer), io.Discard, tree.Limits{})
				require.NoError(w, err)
				tr, err := l.On(trees)
				if aerr != nil {
					require.ErrorIs(w, err, tree.ErrInvalid, "image %d: containerd says %v", n, aerr)
					require.NoError(w, os.RemoveAll(dir))
					refused++
					continue
				}
				require.NoError(w, err, "image %d", n)
				require.Equal(w, applied(w, dir), asSeen(w, tr), "image %d layer %d", n, len(dirs))
				dirs, trees = append([]string{dir}, dirs...), append([]*tree.Tree{tr}, trees...)
				layers++
				if tr.StackBound() {
					bound++
				}
			}
			scratch.Clear(w)
		}
	})
	t.Logf("%d layers, of which %d depend on their stack, and %d refused", layers, bound, refused)
	require.Greater(t, layers, refused/2, "too few layers are good ones")
}
