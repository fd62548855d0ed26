package builder

import (
	"archive/tar"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layertest"
)

// TestBuildStacks has layers that containerd unpacks in another way at the bottom of an image than on other layers, and
// directories that are mentioned late. Every layer directory of the disk is compared with what containerd unpacks.
func TestBuildStacks(t *testing.T) {
	needRoot(t)
	dir := func(l *layertest.Tar, name string, mode int64, gid int, records map[string]string) *layertest.Tar {
		return l.Add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Gid: gid, PAXRecords: records, ModTime: time.Unix(1_600_000_000, 0)}, "")
	}
	squashed := layertest.NewTar(t).Dir("d", 0o755).File("d/x", "x").File("d/.wh.x", "").File("e/f", "x").Dir("e", 0o755).
		File("e/.wh..wh..opq", "").Bytes()
	below := dir(dir(layertest.NewTar(t), "d", 0o2755, 2, nil), "a", 0o755, 0, layertest.Xattrs("user.k", "1")).Bytes()
	hides := layertest.NewTar(t).File(".wh.d", "").File("a/.wh..wh..opq", "").Bytes()
	late := dir(dir(layertest.NewTar(t).File("a/f", "x").File("d/b/f", "x"), "a", 0o711, 0, nil), "d", 0o755, 0, nil).Bytes()
	marks := layertest.NewTar(t).File("a/.wh..wh..opq", "").Bytes()
	stacks := [][][]byte{{squashed, late}, {below, hides}, {hides, below}, {below, late}, {late}, {below, marks}}
	for _, fileSystem := range []string{layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4} {
		t.Run(fileSystem, func(t *testing.T) {
			r := newTestRegistry(t)
			var images []string
			for i, stack := range stacks {
				var layers []forgedLayer
				for _, l := range stack {
					layers = append(layers, gzipLayer(t, l))
				}
				images = append(images, r.putImage(t, "team/app", string(rune('a'+i)), forgeImage(t, amd64, created, layers...)))
			}
			o := buildOptions(t, images...)
			o.Output.FileSystem = fileSystem
			_, err := Build(t.Context(), o)
			require.NoError(t, err)
			requireStacks(t, o.Output.Path, stacks)
			if fileSystem != layerdisk.FileSystemEROFS {
				return
			}
			for _, again := range [][]int{{0, 1}, {1}, {2, 5}, {1, 2, 3, 4}} {
				reuse := buildOptions(t)
				reuse.Output = Output{Path: copyDisk(t, o.Output.Path, 0), Reuse: true}
				var wanted [][][]byte
				for _, i := range again {
					reuse.Images, wanted = append(reuse.Images, images[i]), append(wanted, stacks[i])
				}
				_, err = Build(t.Context(), reuse)
				require.NoError(t, err)
				requireStacks(t, reuse.Output.Path, wanted)
				requireFsckClean(t, reuse.Output.Path)
			}
		})
	}
}

// requireStacks compares the images of a disk with what containerd unpacks.
func requireStacks(t *testing.T, disk string, stacks [][][]byte) {
	t.Helper()
	root := requireSound(t, disk)
	ix := readDisk(t, disk)
	lookup := layerdisk.NewLookup(ix)
	for i, stack := range stacks {
		scratch := layertest.Scratch(t)
		var dirs []string
		for n, l := range lookup.Stack(ix.Images[i].ChainID) {
			applied, err := scratch.ApplyOn(t, stack[n], dirs...)
			require.NoError(t, err)
			dirs = append([]string{applied}, dirs...)
			want, got := layertest.Look(t, applied), layertest.Look(t, filepath.Join(root, layerdisk.LayerDir(l.Number)))
			var untimed []string
			for name, s := range want {
				if s.Mtime > "1700000001" && len(s.Mtime) == len("1700000001.000000000") { // the clock's
					untimed = append(untimed, name)
				}
			}
			layertest.RequireSame(t, want, got, untimed...)
		}
	}
}
