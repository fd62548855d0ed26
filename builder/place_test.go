package builder

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/erofs"
	"berth.dev/berth/readahead/accesslist"
)

// placedDisk is an image of two layers whose start reads some of their files.
type placedDisk struct {
	registry *testRegistry
	image    string
	lower    digest.Digest
	upper    digest.Digest
	list     *accesslist.List
}

func newPlacedDisk(t *testing.T) *placedDisk {
	r := newTestRegistry(t)
	lower := gzipLayer(t, makeTar(t, tarContent{
		"lib/": "", "lib/a": bigContent(t, 10_000), "lib/b": bigContent(t, 5000), "lib/unread": bigContent(t, 3<<20),
		"lib/large": bigContent(t, 5<<20), "lib/holes": holes(t), "lib/empty": "",
	}))
	upper := zstdLayer(t, makeTar(t, tarContent{
		"app/": "", "app/first": bigContent(t, 300_000), "app/zlast": "last", "app/half": bigContent(t, 2<<20), "app/unread": bigContent(t, 100_000),
	}))
	d := &placedDisk{registry: r, lower: lower.trueDiffID(), upper: upper.trueDiffID()}
	d.image = r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, lower, upper))
	part := func(layer digest.Digest, path string, offset, length int64) accesslist.FileRange {
		return accesslist.FileRange{DiffID: layer, Path: path, Offset: offset, Length: length}
	}
	d.list = &accesslist.List{Image: "app:1", Platform: "linux/amd64", Recorded: created, Files: []accesslist.FileRange{
		part(d.upper, "app/first", 0, 4096),
		part(d.lower, "lib/b", 0, 8192),
		part(d.lower, "lib/large", 0, 1<<20), // a fifth of it
		part(d.upper, "app/half", 0, 1<<20),
		part(d.lower, "lib/holes", 2<<20, 65536),
		part(d.lower, "lib/empty", 0, 4096),
		part(d.upper, "app/first", 65536, 4096), // again
		part(d.lower, "lib/none", 0, 4096),
		part(d.lower, "lib", 0, 4096),
		part(d.lower, "lib/a/below", 0, 4096),
		part(digest.FromString("another layer"), "lib/a", 0, 4096),
		part(d.lower, "lib/a", 0, 4096),
		part(d.upper, "app/zlast", 0, 4096),
	}}
	return d
}

// placed are the files of the list that are placed, in its order, with their blocks.
func (d *placedDisk) placed() (layers []digest.Digest, paths []string, blocks []int64) {
	return []digest.Digest{d.upper, d.lower, d.upper, d.lower, d.upper},
		[]string{"app/first", "lib/b", "app/half", "lib/a", "app/zlast"}, []int64{74, 2, 512, 3, 1}
}

// firstBlocks of the files that are placed.
func (d *placedDisk) firstBlocks(t *testing.T, path string) []int64 {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	ix, _, err := layerdisk.ReadIndex(f)
	require.NoError(t, err)
	look := layerdisk.NewLookup(ix)
	reader, err := erofs.Open(f)
	require.NoError(t, err)
	layers, paths, _ := d.placed()
	at := make([]int64, len(paths))
	for i, p := range paths {
		layer, ok := look.Layer(layers[i])
		require.True(t, ok)
		require.NoError(t, reader.Walk(t.Context(), layerdisk.LayerDir(layer.Number)+"/"+p, func(_ string, n erofs.Node) error {
			at[i] = int64(n.FirstBlock)
			return nil
		}))
	}
	return at
}

// requireTogether wants the placed files behind one another in the order of their first access, and the index to say
// so.
func (d *placedDisk) requireTogether(t *testing.T, path string) {
	t.Helper()
	_, _, blocks := d.placed()
	at := d.firstBlocks(t, path)
	var want []int64
	next := at[0]
	for _, n := range blocks {
		want = append(want, next)
		next += n
	}
	require.Equal(t, want, at)
	placed := readDisk(t, path).Placed
	require.NotNil(t, placed)
	require.Equal(t, layerdisk.Placed{Offset: at[0] * 4096, Length: (next - at[0]) * 4096, Files: len(blocks)}, *placed)
}

func (d *placedDisk) build(t *testing.T, lists ...*accesslist.List) (string, *Result) {
	t.Helper()
	o := buildOptions(t, d.image)
	o.AccessLists = lists
	res, err := Build(t.Context(), o)
	require.NoError(t, err)
	return o.Output.Path, res
}

func attributes(ix *layerdisk.Index) (list []string) {
	for _, l := range ix.Layers {
		list = append(list, fmt.Sprint(l.DiffID, l.Attributes))
	}
	return list
}

func TestPlacedFilesLieTogether(t *testing.T) {
	d := newPlacedDisk(t)
	plain, plainResult := d.build(t)
	require.Nil(t, readDisk(t, plain).Placed)
	require.Equal(t, "1.0", readDisk(t, plain).FormatVersion)
	path, res := d.build(t, d.list)
	d.requireTogether(t, path)
	require.Equal(t, "1.1", readDisk(t, path).FormatVersion)
	require.Equal(t, 5, res.PlacedFiles)
	require.EqualValues(t, 592*4096, res.PlacedBytes)
	require.Zero(t, plainResult.PlacedFiles)

	// The layers are what they were, to every attribute and byte of them: requireSound reads them all.
	require.Equal(t, attributes(readDisk(t, plain)), attributes(readDisk(t, path)))
	requireFsckClean(t, path)
	requireSound(t, path)

	again, _ := d.build(t, d.list)
	require.Equal(t, sum(t, path), sum(t, again), "the same list gives the same bytes")
	// Their former places take no room where the file system can do without.
	require.Less(t, allocated(t, path)-allocated(t, plain), int64(300<<10))

	// Lists of several images follow one another.
	first, second := *d.list, *d.list
	first.Files, second.Files = d.list.Files[:2], d.list.Files[1:]
	several, _ := d.build(t, &first, &second)
	d.requireTogether(t, several)
	require.Equal(t, sum(t, path), sum(t, several))

	useless := *d.list
	useless.Files = d.list.Files[10:11]
	none, _ := d.build(t, &useless)
	require.Equal(t, sum(t, plain), sum(t, none), "a list with nothing of the image changes nothing")
}

// A device cannot always leave out what is cleared, but has the same bytes.
func TestPlacedFilesOnADevice(t *testing.T) {
	d := newPlacedDisk(t)
	path, res := d.build(t, d.list)
	dev := loopDevice(t, 64<<20, false)
	o := buildOptions(t, d.image)
	o.Output.Path, o.AccessLists = dev, []*accesslist.List{d.list}
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	got := make([]byte, res.DiskBytes)
	f, err := os.Open(dev)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(want[:res.DiskBytes]), sha256.Sum256(got))
}

// TestPlacedFilesOfReusedLayers is E-22 with a list that came after the first build.
func TestPlacedFilesOfReusedLayers(t *testing.T) {
	d := newPlacedDisk(t)
	plain, _ := d.build(t)
	next := gzipLayer(t, makeTar(t, tarContent{"new": bigContent(t, 200_000)}))
	reuse := func(from string, layers ...forgedLayer) (string, *Result) {
		o := buildOptions(t, d.image)
		if len(layers) > 0 {
			o.Images = append(o.Images, d.registry.putImage(t, "team/new", "1", forgeImage(t, amd64, created, layers...)))
		}
		o.AccessLists = []*accesslist.List{d.list}
		o.Output = Output{Path: copyDisk(t, from, 64<<20), Reuse: true}
		res, err := Build(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, 2, res.ReusedLayers)
		requireSound(t, o.Output.Path)
		requireFsckClean(t, o.Output.Path)
		return o.Output.Path, res
	}
	placed, res := reuse(plain)
	d.requireTogether(t, placed)
	require.Zero(t, res.FetchedBytes)

	// Once they lie together they stay where they are, and so do all layers that have files among them.
	before := d.firstBlocks(t, placed)
	again, res := reuse(placed, next)
	require.Equal(t, before, d.firstBlocks(t, again))
	require.Less(t, res.WrittenBytes, int64(500<<10))
	require.NotNil(t, readDisk(t, again).Placed, "the index goes on to say where they lie")
	require.Equal(t, readDisk(t, placed).Placed, readDisk(t, again).Placed)

	// A disk that was built with the list at once can be added to as well, without it too.
	fresh, _ := d.build(t, d.list)
	o := buildOptions(t, d.image)
	o.Output = Output{Path: copyDisk(t, fresh, 64<<20), Reuse: true}
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	requireSound(t, o.Output.Path)
	requireFsckClean(t, o.Output.Path)
}

func TestPlacedFilesRefused(t *testing.T) {
	d := newPlacedDisk(t)
	o := buildOptions(t, d.image)
	o.AccessLists, o.Output.FileSystem = []*accesslist.List{d.list}, layerdisk.FileSystemExt4
	_, err := Build(t.Context(), o)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	o = buildOptions(t, d.image)
	o.AccessLists = []*accesslist.List{{Image: "x"}}
	_, err = Build(t.Context(), o)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	requireEmptyDir(t, o)
}

func TestPlacedFilesNeedRoom(t *testing.T) {
	d := newPlacedDisk(t)
	_, res := d.build(t, d.list)
	for _, missing := range []int64{4096, res.PlacedBytes, 8 << 20} {
		o := buildOptions(t, d.image)
		o.AccessLists, o.Output.SizeBytes = []*accesslist.List{d.list}, res.DiskBytes-missing
		_, err := Build(t.Context(), o)
		var small *TooSmallError
		require.ErrorAs(t, err, &small)
		require.Equal(t, res.DiskBytes, small.NeededBytes, "what it says would be enough, is")
		requireEmptyDir(t, o)
	}
	o := buildOptions(t, d.image)
	o.AccessLists, o.Output.SizeBytes = []*accesslist.List{d.list}, res.DiskBytes
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
}

func sum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Clean(path))
	require.NoError(t, err)
	return digest.FromBytes(b).String()
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	return statOf(t, path).Blocks * 512
}

func statOf(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st
}
