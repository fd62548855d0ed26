package builder

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/layerdisk"
)

// copyDisk makes what a volume made from a snapshot of the disk would be, grown to size bytes.
func copyDisk(t *testing.T, from string, size int64) string {
	t.Helper()
	b, err := os.ReadFile(from)
	require.NoError(t, err)
	to := filepath.Join(t.TempDir(), "copy.img")
	require.NoError(t, os.WriteFile(to, b, 0o600))
	if size > 0 {
		require.NoError(t, os.Truncate(to, size))
	}
	return to
}

// requireSameIndex wants a disk to be, for all who read it, the one that is built from nothing.
func requireSameIndex(t *testing.T, path string, images ...string) {
	t.Helper()
	o := buildOptions(t, images...)
	want, err := Build(t.Context(), o)
	require.NoError(t, err)
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	_, got, err := layerdisk.ReadIndex(f)
	require.NoError(t, err)
	require.Equal(t, want.Identity, got)
}

func requireFsckClean(t *testing.T, path string) {
	t.Helper()
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		return
	}
	out, err := exec.CommandContext(t.Context(), fsck, "--extract", path).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// holes is a file of zeros with something in the middle, which is stored with holes.
func holes(t *testing.T) string {
	return strings.Repeat("\x00", 2<<20) + bigContent(t, 100_000) + strings.Repeat("\x00", 3<<20)
}

// TestReuseLayers is E-22: only new layers are fetched and written.
func TestReuseLayers(t *testing.T) {
	r := newTestRegistry(t)
	base := gzipLayer(t, makeTar(t, tarContent{"etc/": "", "etc/passwd": "root:x:0:0", "big": bigContent(t, 20<<20), "holes": holes(t)}))
	old := gzipLayer(t, makeTar(t, tarContent{"old/": "", "old/gone": bigContent(t, 4<<20)}))
	empty := gzipLayer(t, makeTar(t, nil))
	app := gzipLayer(t, makeTar(t, tarContent{"app/": "", "app/main": bigContent(t, 6<<20), "app/.wh.x": "", "app/empty": ""}))
	first := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, base, empty, old))
	second := r.putImage(t, "team/app", "2", forgeImage(t, amd64, created, base, empty, app))
	third := r.putImage(t, "team/app", "3", forgeImage(t, amd64, created, base, app, old))

	o := buildOptions(t, first)
	res, err := Build(t.Context(), o)
	require.NoError(t, err)
	requireSound(t, o.Output.Path)
	require.GreaterOrEqual(t, res.WrittenBytes, res.DiskBytes-(5<<20))

	reuse := buildOptions(t, second)
	reuse.Output = Output{Path: copyDisk(t, o.Output.Path, 64<<20), Reuse: true}
	var planned int64
	reuse.Progress = func(e Event) {
		if e.Plan != nil {
			planned = e.Plan.BlobBytes
		}
	}
	again, err := Build(t.Context(), reuse)
	require.NoError(t, err)
	for l, want := range map[digest.Digest]int{base.descriptor().Digest: 1, empty.descriptor().Digest: 1, app.descriptor().Digest: 1} {
		require.Equal(t, want, r.blobGets(l), "fetched once, all builds together")
	}
	require.Equal(t, 2, again.ReusedLayers)
	require.Equal(t, app.descriptor().Size, again.FetchedBytes)
	require.Equal(t, app.descriptor().Size, planned)
	require.EqualValues(t, 20<<20+5<<20+100_000+10, again.ReusedBytes)
	require.Less(t, again.WrittenBytes, int64(6<<20+200<<10), "the new layer and metadata, nothing else")
	require.Greater(t, again.WrittenBytes, int64(6<<20))
	require.Greater(t, again.DiskBytes, res.DiskBytes+6<<20)
	requireSound(t, reuse.Output.Path)
	requireFsckClean(t, reuse.Output.Path)
	requireSameIndex(t, reuse.Output.Path, second)

	// And once more, with layers of either generation; the order is the new image's.
	last := buildOptions(t, third)
	last.Output = Output{Path: copyDisk(t, reuse.Output.Path, 0), Reuse: true}
	res, err = Build(t.Context(), last)
	require.NoError(t, err)
	require.Equal(t, 2, res.ReusedLayers)
	requireSound(t, last.Output.Path)
	requireFsckClean(t, last.Output.Path)
	requireSameIndex(t, last.Output.Path, third)

	// With nothing new, nothing is fetched.
	same := buildOptions(t, third)
	same.Output = Output{Path: copyDisk(t, last.Output.Path, 0), Reuse: true}
	res, err = Build(t.Context(), same)
	require.NoError(t, err)
	require.Zero(t, res.FetchedBytes)
	require.Equal(t, 3, res.ReusedLayers)
	require.Less(t, res.WrittenBytes, int64(100<<10))
	requireSound(t, same.Output.Path)
	requireSameIndex(t, same.Output.Path, third)
}

// TestReuseStackBoundLayers: layers that leave out directories look different on different stacks. Each look is taken
// over for its own stack, and where a stack is new the layer is fetched again.
func TestReuseStackBoundLayers(t *testing.T) {
	r := newTestRegistry(t)
	sticky := gzipLayer(t, privateTmp(t))
	plain := gzipLayer(t, makeTar(t, tarContent{"other/": ""}))
	third := gzipLayer(t, makeTar(t, tarContent{"third/": ""}))
	bound := gzipLayer(t, makeTar(t, tarContent{"tmp/x": bigContent(t, 1<<20)}))
	one := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, sticky, bound))
	two := r.putImage(t, "team/app", "2", forgeImage(t, amd64, created, plain, bound))
	three := r.putImage(t, "team/app", "3", forgeImage(t, amd64, created, third, bound))

	o := buildOptions(t, one, two)
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	ix := readDisk(t, o.Output.Path)
	require.Len(t, ix.Layers, 4, "two looks of the bound layer")

	for _, images := range [][]string{{two, one}, {two}, {one}} {
		reuse := buildOptions(t, images...)
		reuse.Output = Output{Path: copyDisk(t, o.Output.Path, 0), Reuse: true}
		res, err := Build(t.Context(), reuse)
		require.NoError(t, err)
		require.Zero(t, res.FetchedBytes)
		requireSound(t, reuse.Output.Path)
		requireSameIndex(t, reuse.Output.Path, images...)
	}
	before := r.blobGets(bound.descriptor().Digest)
	reuse := buildOptions(t, one, three)
	reuse.Output = Output{Path: copyDisk(t, o.Output.Path, 0), Reuse: true}
	_, err = Build(t.Context(), reuse)
	require.NoError(t, err)
	require.Equal(t, before+1, r.blobGets(bound.descriptor().Digest))
	requireSound(t, reuse.Output.Path)
	requireSameIndex(t, reuse.Output.Path, one, three)
}

// TestReuseOnDevice is what a volume made from a snapshot is.
func TestReuseOnDevice(t *testing.T) {
	needRoot(t)
	r := newTestRegistry(t)
	base := gzipLayer(t, makeTar(t, tarContent{"big": bigContent(t, 3<<20)}))
	app := gzipLayer(t, makeTar(t, tarContent{"app": bigContent(t, 1<<20)}))
	first := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, base))
	second := r.putImage(t, "team/app", "2", forgeImage(t, amd64, created, base, app))
	o := buildOptions(t, first)
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	file := copyDisk(t, o.Output.Path, 16<<20)
	loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, device.DetachLoop(context.WithoutCancel(t.Context()), loop)) }()
	reuse := buildOptions(t, second)
	reuse.Output = Output{Path: loop.Path, Reuse: true}
	res, err := Build(t.Context(), reuse)
	require.NoError(t, err)
	require.Equal(t, app.descriptor().Size, res.FetchedBytes)
	requireSound(t, file)

	// What does not fit says what is needed, and the base is no disk any more: half of it is written over.
	huge := r.putImage(t, "team/app", "3", forgeImage(t, amd64, created, base, gzipLayer(t, makeTar(t, tarContent{"huge": bigContent(t, 20<<20)}))))
	reuse.Images = []string{huge}
	_, err = Build(t.Context(), reuse)
	require.ErrorIs(t, err, ErrTooSmall)
	_, err = Build(t.Context(), reuse)
	require.ErrorIs(t, err, ErrBase)
}

func TestReuseRefuses(t *testing.T) {
	ref := onePut(t, gzipLayer(t, makeTar(t, tarContent{"d/": "", "d/a": bigContent(t, 3<<20), "holes": holes(t)})))
	o := buildOptions(t, ref)
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	good, err := os.ReadFile(o.Output.Path)
	require.NoError(t, err)

	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, make([]byte, 1<<20), 0o600))
	reuse := buildOptions(t, ref)
	reuse.Output = Output{Path: empty, Reuse: true}
	_, err = Build(t.Context(), reuse)
	require.ErrorIs(t, err, ErrBase)
	require.True(t, errdefs.IsDataLoss(err))
	reuse.Output.Force = true
	_, err = Build(t.Context(), reuse)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)

	// Whatever part of the metadata is damaged: an error of the class, or a sound disk, never a wrong one and never a
	// crash.
	h, err := layerdisk.ParseHeader(good)
	require.NoError(t, err)
	meta := int(h.IndexOffset)
	for at := meta; at < len(good); at += 997 {
		t.Run(fmt.Sprint(at-meta), func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "bad")
			b := append([]byte(nil), good...)
			for i := at; i < min(at+8, len(b)); i++ {
				b[i] ^= 0xff
			}
			require.NoError(t, os.WriteFile(bad, b, 0o600))
			reuse := buildOptions(t, ref)
			reuse.Output = Output{Path: bad, Reuse: true}
			if _, err := Build(t.Context(), reuse); err != nil {
				require.True(t, errdefs.IsDataLoss(err), "%v", err)
				kept, err := os.ReadFile(bad)
				require.NoError(t, err)
				require.Equal(t, b, kept, "refused, and left as it was")
			}
		})
	}
}
