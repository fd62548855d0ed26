package snapshotter_test

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/continuity/fs/fstest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// TestSameLayerTwice: an image may have a layer several times, a disk has it once. What a container sees, and what is
// unpacked on top, is as with overlayfs.
func TestSameLayerTwice(t *testing.T) {
	dir := func(name string) entry { return entry{name: name, kind: tar.TypeDir} }
	base := tarOf(t, dir("d/"), entry{name: "d/base", body: "base\n"}, entry{name: "f", body: "f\n"})
	empty := tarOf(t)
	x := tarOf(t, dir("d/"), entry{name: "d/x", body: "x\n"}, entry{name: ".wh.f"}, dir("o/"), entry{name: "o/.wh..wh..opq"}, entry{name: "o/x", body: "x\n"})
	hides := tarOf(t, dir("d/"), entry{name: "d/.wh.x"}, entry{name: "f", body: "back\n"}, dir("o/"), entry{name: "o/between", body: "b\n"})
	local := tarOf(t, entry{name: "d/new", body: "new\n"})
	for name, c := range map[string]struct {
		tars [][]byte
		disk []int // layers on the disk
		kept int   // lower directories
	}{
		"empty ones":             {[][]byte{base, empty, x, empty, hides, empty}, []int{0, 1, 2, 4}, 4},
		"what is hidden between": {[][]byte{base, x, hides, x}, []int{0, 1, 2}, 3},
		"at the bottom":          {[][]byte{base, hides, base}, []int{0, 1}, 2},
		"nothing else":           {[][]byte{base, base}, []int{0}, 1},
		"nothing else and empty": {[][]byte{empty, empty, empty}, []int{0}, 1},
		"unpacked on top":        {[][]byte{base, x, hides, x, local}, []int{0, 1, 2}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			im := forge(t, "twice", nil, c.tars...)
			want := stockTree(t, im)
			for _, how := range []pulling{{}, {parallel: 4}, {parallel: 4, rebase: true}} {
				n := newNode(t, snapshotter.Config{}, pick(im, c.disk...))
				n.mustPull(t, im, how)
				ctx := how.context(t)
				mounts, err := n.meta.Prepare(ctx, "container", im.top().String())
				require.NoError(t, err)
				require.Len(t, strings.Split(option(t, mounts[0], "lowerdir="), ":"), c.kept)
				require.Contains(t, mounts[0].Options, "xino=on")
				root := mountAt(t, mounts)
				require.NoError(t, fstest.CheckDirectoryEqual(root, want))
				require.NoError(t, os.WriteFile(filepath.Join(root, "written"), nil, 0o600))
				for i := range im.layers {
					view, err := n.meta.View(ctx, fmt.Sprint("view-", i), im.layers[i].chainID.String())
					require.NoError(t, err)
					dir := mountAt(t, view)
					if i == len(im.layers)-1 {
						require.NoError(t, fstest.CheckDirectoryEqual(dir, want))
					}
				}
			}
		})
	}
}
