package builder

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/attrs"
)

var created = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)

func buildOptions(t testing.TB, images ...string) Options {
	t.Helper()
	return Options{Images: images, Output: Output{Path: filepath.Join(t.TempDir(), "disk.img")}, retry: &retryPolicy{attempts: 4, first: time.Millisecond}}
}

// requireEmptyDir checks that a failed build left nothing beside its output.
func requireEmptyDir(t *testing.T, o Options) {
	t.Helper()
	left, err := os.ReadDir(filepath.Dir(o.Output.Path))
	require.NoError(t, err)
	require.Empty(t, left)
}

func readDisk(t *testing.T, path string) *layerdisk.Index {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	ix, _, err := layerdisk.ReadIndex(f)
	require.NoError(t, err)
	return ix
}

// mountDisk mounts a finished disk as a node does.
func mountDisk(t *testing.T, path string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ix := readDisk(t, path)
	loop, err := device.AttachLoop(t.Context(), path, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.WithoutCancel(t.Context()), loop)) })
	dir := t.TempDir()
	require.NoError(t, fsmount.Mount(loop.Path, dir, fsmount.FileSystem(ix.FileSystem)))
	t.Cleanup(func() { require.NoError(t, fsmount.Unmount(dir)) })
	return dir
}

// requireSound mounts the disk and derives every layer's listing again.
func requireSound(t *testing.T, path string) string {
	t.Helper()
	ix := readDisk(t, path)
	root := mountDisk(t, path)
	index, err := os.ReadFile(filepath.Join(root, layerdisk.IndexPath))
	require.NoError(t, err)
	parsed, err := layerdisk.Parse(index)
	require.NoError(t, err)
	require.Equal(t, ix, parsed)
	layers, err := os.ReadDir(filepath.Join(root, layerdisk.LayersDir))
	require.NoError(t, err)
	require.Len(t, layers, len(ix.Layers))
	for _, l := range ix.Layers {
		entries, err := attrs.FromDir(t.Context(), filepath.Join(root, layerdisk.LayerDir(l.Number)))
		require.NoError(t, err)
		stored, err := os.Open(filepath.Join(root, layerdisk.ListingPath(l.Number)))
		require.NoError(t, err)
		want, digest, err := attrs.Load(stored, 1<<30)
		require.NoError(t, stored.Close())
		require.NoError(t, err)
		require.Equal(t, l.Attributes, digest)
		require.Empty(t, attrs.Diff(want, entries))
	}
	return root
}

func bigContent(t testing.TB, n int) string {
	t.Helper()
	b := make([]byte, n)
	_, err := rand.Read(b)
	require.NoError(t, err)
	return string(b)
}

func TestBuildSharesLayers(t *testing.T) {
	r := newTestRegistry(t)
	base := gzipLayer(t, makeTar(t, tarContent{"etc/": "", "etc/passwd": "root:x:0:0", "big": bigContent(t, 20<<20)}))
	app := zstdLayer(t, makeTar(t, tarContent{"app/": "", "app/main": bigContent(t, 12<<20), "app/.wh.old": ""}))
	other := plainLayer(makeTar(t, tarContent{"other": strings.Repeat("x", 5000)}))
	empty := gzipLayer(t, makeTar(t, nil))
	first := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, base, empty, app, empty))
	second := r.putImage(t, "team/other", "2", forgeImage(t, amd64, created.Add(-time.Hour), base, other))

	o := buildOptions(t, first, second, first)
	var events []Event
	o.Progress = func(e Event) { events = append(events, e) }
	res, err := Build(t.Context(), o)
	require.NoError(t, err)

	for _, l := range []forgedLayer{base, app, other, empty} {
		require.Equal(t, 1, r.blobGets(l.descriptor().Digest))
	}
	ix := readDisk(t, o.Output.Path)
	require.Equal(t, created, ix.Created)
	require.Len(t, ix.Images, 2)
	require.Equal(t, first, ix.Images[0].Reference)
	require.Len(t, ix.Layers, 4)
	require.Equal(t, app.trueDiffID(), ix.Layers[2].DiffID)
	require.Equal(t, app.descriptor().Digest, ix.Layers[2].Blobs[0].Digest)
	require.Len(t, ix.Chains, 5)
	require.Equal(t, ix.UUID, res.Identity.UUID)
	require.Equal(t, 4, res.Layers)
	require.Equal(t, 1, res.SharedLayers)
	require.Equal(t, 5, res.LayerUses)
	info, err := os.Stat(o.Output.Path)
	require.NoError(t, err)
	require.Equal(t, res.DiskBytes, info.Size())
	require.Equal(t, os.FileMode(0o600), info.Mode())

	counts := make(map[EventKind]int)
	for _, e := range events {
		counts[e.Kind]++
	}
	require.Equal(t, 3, counts[EventResolved])
	require.Equal(t, 4, counts[EventLayerStarted])
	require.Equal(t, 4, counts[EventLayerDone])

	root := requireSound(t, o.Output.Path)
	passwd, err := os.ReadFile(filepath.Join(root, "l/0/etc/passwd"))
	require.NoError(t, err)
	require.Equal(t, "root:x:0:0", string(passwd))
}

func TestBuildIsReproducible(t *testing.T) {
	r := newTestRegistry(t)
	var layers []forgedLayer
	for i := range 12 {
		layers = append(layers, gzipLayer(t, makeTar(t, tarContent{
			fmt.Sprintf("f%d", i): bigContent(t, 1+(i*7919)%5*3<<20), "same": "same", fmt.Sprintf("d%d/", i): "",
		})))
	}
	a := r.putImage(t, "a", "1", forgeImage(t, amd64, created, layers[:8]...))
	b := r.putImage(t, "b", "1", forgeImage(t, amd64, created, layers[4:]...))
	var want []byte
	for _, parallel := range []int{1, 3, 12} {
		o := buildOptions(t, a, b)
		o.Parallel = parallel
		if parallel == 3 {
			o.gzipProgram = new(string)
		}
		_, err := Build(t.Context(), o)
		require.NoError(t, err)
		got, err := os.ReadFile(o.Output.Path)
		require.NoError(t, err)
		if want == nil {
			want = got
		}
		require.True(t, string(want) == string(got), "parallel %d gives other bytes", parallel)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}
