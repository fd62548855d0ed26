package tree_test

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// bottom is a tree without anything, for what is unpacked as an overlay.
func bottom(t testing.TB) *tree.Tree {
	t.Helper()
	tr, err := readOn(t, layertest.NewTar(t).Bytes(), tree.Limits{})
	require.NoError(t, err)
	return tr
}

func readOn(t testing.TB, layer []byte, limits tree.Limits, lower ...*tree.Tree) (*tree.Tree, error) {
	l, err := tree.Read(t.Context(), bytes.NewReader(layer), io.Discard, limits)
	if err != nil {
		return nil, err
	}
	return l.On(lower)
}

func read(t testing.TB, layer []byte) (*tree.Tree, error) {
	return readOn(t, layer, tree.Limits{}, bottom(t))
}

// asSeen gives entries the form of a walk over a real directory, link counts left out. Every path is checked to be in
// its place and every hard link to name an earlier entry.
func asSeen(t testing.TB, tr *tree.Tree) map[string]layertest.Seen {
	t.Helper()
	formats := map[attrs.FileType]uint32{
		attrs.Regular: unix.S_IFREG, attrs.Directory: unix.S_IFDIR, attrs.Symlink: unix.S_IFLNK, attrs.CharDev: unix.S_IFCHR,
		attrs.BlockDev: unix.S_IFBLK, attrs.FIFO: unix.S_IFIFO,
	}
	out := make(map[string]layertest.Seen)
	last := ""
	for e := range tr.Entries() {
		require.Less(t, last, e.Path)
		last = e.Path
		require.Contains(t, formats, e.Type, e.Path)
		s := layertest.Seen{
			Mode: formats[e.Type] | e.Mode, UID: e.UID, GID: e.GID, Size: e.Size, Rdev: unix.Mkdev(e.DevMajor, e.DevMinor),
			Mtime: fmt.Sprintf("%d.%09d", e.MtimeSec, e.MtimeNsec), Target: e.Target, Group: e.Path,
		}
		var xattrs strings.Builder
		for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
			fmt.Fprintf(&xattrs, "%q=%x\n", name, e.Xattrs[name])
		}
		s.Xattrs = xattrs.String()
		switch {
		case e.HardLink != "":
			require.Contains(t, out, e.HardLink, "a hard link must name an earlier entry")
			require.Zero(t, e.Content)
			s.Group, s.Content = e.HardLink, out[e.HardLink].Content
		case e.Type == attrs.Regular:
			s.Content = fmt.Sprintf("%x", e.Content)
		default:
			require.Zero(t, e.Content)
		}
		out[e.Path] = s
	}
	return out
}

// applied is what containerd makes of the layer in the same form: hard links are grouped by the first path bytewise.
// Times that come from the clock are 0.
func applied(t testing.TB, dir string) map[string]layertest.Seen {
	t.Helper()
	found := layertest.Look(t, dir)
	first := make(map[string]string)
	for _, p := range slices.SortedFunc(maps.Keys(found), cmp.Compare[string]) {
		if g := found[p].Group; first[g] == "" {
			first[g] = p
		}
	}
	for p, s := range found {
		s.Group, s.Nlink = first[s.Group], 0
		if clockTime(s.Mtime) {
			s.Mtime = "0.000000000"
		}
		found[p] = s
	}
	return found
}

// clockTime tells a time of these days from those that tests put into archives, which are all before 2023-11-15.
func clockTime(mtime string) bool {
	sec, _, _ := strings.Cut(mtime, ".")
	return len(sec) == 10 && sec > "1700000001"
}
