package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/layerdisk"
)

func onePut(t *testing.T, layers ...forgedLayer) string {
	t.Helper()
	return newTestRegistry(t).putImage(t, "team/app", "1", forgeImage(t, amd64, created, layers...))
}

func TestOutputFile(t *testing.T) {
	ref := onePut(t, gzipLayer(t, makeTar(t, tarContent{"a": bigContent(t, 3<<20)})))
	o := buildOptions(t, ref)
	require.NoError(t, os.WriteFile(o.Output.Path, []byte("precious"), 0o644))
	_, err := Build(t.Context(), o)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	require.ErrorContains(t, err, "--force")
	kept, err := os.ReadFile(o.Output.Path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(kept))

	// Failing does not destroy what was to be replaced.
	o.Output.Force, o.Output.SizeBytes = true, 1<<20
	_, err = Build(t.Context(), o)
	require.ErrorIs(t, err, ErrTooSmall)
	kept, err = os.ReadFile(o.Output.Path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(kept))

	o.Output.SizeBytes = 0
	res, err := Build(t.Context(), o)
	require.NoError(t, err)
	requireSound(t, o.Output.Path)
	left, err := os.ReadDir(filepath.Dir(o.Output.Path))
	require.NoError(t, err)
	require.Len(t, left, 1)

	// The error says how much is needed, and that is enough; a block less is not.
	for _, parallel := range []int{1, 4} {
		o = buildOptions(t, ref)
		o.Output.SizeBytes, o.Parallel = res.DiskBytes-blockBytes, parallel
		_, err = Build(t.Context(), o)
		require.ErrorIs(t, err, ErrTooSmall)
		require.ErrorContains(t, err, fmt.Sprintf("(%d bytes)", res.DiskBytes))
		requireEmptyDir(t, o)
	}
	o.Output.SizeBytes = res.DiskBytes
	_, err = Build(t.Context(), o)
	require.NoError(t, err)

	o = buildOptions(t, ref)
	o.Output.SizeBytes = 64 << 20
	_, err = Build(t.Context(), o)
	require.NoError(t, err)
	info, err := os.Stat(o.Output.Path)
	require.NoError(t, err)
	require.Equal(t, int64(64<<20), info.Size())
	requireSound(t, o.Output.Path)

	for _, bad := range []string{t.TempDir(), "/dev/null", filepath.Join(t.TempDir(), "none", "disk.img")} {
		o = buildOptions(t, ref)
		o.Output.Path, o.Output.Force = bad, true
		_, err = Build(t.Context(), o)
		require.Error(t, err)
	}
}

// TestOutputRace: somebody makes the file while we build.
func TestOutputRace(t *testing.T) {
	o := buildOptions(t, onePut(t, gzipLayer(t, makeTar(t, tarContent{"a": "a"}))))
	o.Progress = func(e Event) {
		if e.Kind == EventFinishing {
			_ = os.WriteFile(o.Output.Path, []byte("precious"), 0o600)
		}
	}
	_, err := Build(t.Context(), o)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	kept, err := os.ReadFile(o.Output.Path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(kept))
}

// tinyFS is a full-grown file system of few bytes.
func tinyFS(t *testing.T, size string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func TestOutputFileSystemFull(t *testing.T) {
	var layers []forgedLayer
	for i := range 4 {
		layers = append(layers, gzipLayer(t, makeTar(t, tarContent{fmt.Sprint(i): bigContent(t, 10<<20)})))
	}
	ref := onePut(t, layers...)
	ok := buildOptions(t, ref)
	res, err := Build(t.Context(), ok)
	require.NoError(t, err)
	want, err := os.ReadFile(ok.Output.Path)
	require.NoError(t, err)

	for _, fs := range []string{layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4} {
		o := buildOptions(t, ref)
		o.Output.FileSystem = fs
		o.Output.Path = filepath.Join(tinyFS(t, "30m"), "disk.img")
		_, err = Build(t.Context(), o)
		require.ErrorIs(t, err, ErrTooSmall, fs)
		if fs == layerdisk.FileSystemEROFS {
			require.ErrorContains(t, err, fmt.Sprintf("(%d bytes)", res.DiskBytes))
		}
		requireEmptyDir(t, o)
	}

	// Room for the disk, but not for spool files beside it: slower, but it works.
	o := buildOptions(t, ref)
	o.Output.TempDir = tinyFS(t, "1m")
	_, err = Build(t.Context(), o)
	require.NoError(t, err)
	got, err := os.ReadFile(o.Output.Path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

func loopDevice(t *testing.T, size int64, readOnly bool) string {
	t.Helper()
	needRoot(t)
	file := filepath.Join(t.TempDir(), "device")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, size))
	loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{ReadOnly: readOnly})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.WithoutCancel(t.Context()), loop)) })
	return loop.Path
}

func TestOutputDevice(t *testing.T) {
	ref := onePut(t, gzipLayer(t, makeTar(t, tarContent{"a": bigContent(t, 3<<20)})))
	small := onePut(t, gzipLayer(t, makeTar(t, tarContent{"b": "b"})))
	for _, fs := range []string{layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4} {
		t.Run(fs, func(t *testing.T) {
			dev := loopDevice(t, 64<<20, false)
			o := Options{Images: []string{ref}, Output: Output{Path: dev, FileSystem: fs}}
			res, err := Build(t.Context(), o)
			require.NoError(t, err)
			f, err := os.Open(dev)
			require.NoError(t, err)
			_, id, err := layerdisk.ReadIndex(f)
			require.NoError(t, errors.Join(err, f.Close()))
			require.Equal(t, res.Identity, id)

			_, err = Build(t.Context(), o)
			require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
			require.ErrorContains(t, err, "a layer disk")

			o.Images, o.Output.Force = []string{small}, true
			_, err = Build(t.Context(), o)
			require.NoError(t, err)

			// A failed build leaves no disk, neither the old nor the new one.
			ctx, cancel := context.WithCancel(t.Context())
			o.Progress = func(e Event) {
				if e.Kind == EventFinishing {
					cancel()
				}
			}
			_, err = Build(ctx, o)
			require.ErrorIs(t, err, context.Canceled)
			f, err = os.Open(dev)
			require.NoError(t, err)
			_, _, err = layerdisk.ReadIndex(f)
			require.NoError(t, f.Close())
			require.ErrorIs(t, err, layerdisk.ErrNotLayerDisk)
		})
	}
}

func TestOutputDeviceRefused(t *testing.T) {
	ref := onePut(t, gzipLayer(t, makeTar(t, tarContent{"a": bigContent(t, 3<<20)})))
	build := func(dev string) error {
		_, err := Build(t.Context(), Options{Images: []string{ref}, Output: Output{Path: dev}})
		return err
	}
	dev := loopDevice(t, 2<<20, false)
	require.ErrorIs(t, build(dev), ErrTooSmall)
	require.ErrorContains(t, build(dev), dev)

	dev = loopDevice(t, 2<<20, true)
	require.ErrorIs(t, build(dev), errdefs.ErrFailedPrecondition)

	dev = loopDevice(t, 64<<20, false)
	for offset, content := range map[int64]string{0: "XFSB", 512: "EFI PART", 64<<20 - 512: "EFI PART", 70000: "anything"} {
		f, err := os.OpenFile(dev, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte(content), offset)
		require.NoError(t, err)
		require.ErrorIs(t, build(dev), errdefs.ErrAlreadyExists)
		_, err = f.WriteAt([]byte(strings.Repeat("\x00", len(content))), offset)
		require.NoError(t, errors.Join(err, f.Close()))
	}
	claim, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0)
	require.NoError(t, err)
	require.ErrorIs(t, build(dev), errdefs.ErrFailedPrecondition)
	require.NoError(t, claim.Close())
	require.NoError(t, build(dev))
}

func TestBuild127Layers(t *testing.T) {
	r := newTestRegistry(t)
	var layers []forgedLayer
	for i := range 127 {
		layers = append(layers, gzipLayer(t, makeTar(t, tarContent{"d/": "", fmt.Sprintf("d/%d", i): strings.Repeat("x", i*100)})))
	}
	ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, layers...))
	o := buildOptions(t, ref)
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	root := requireSound(t, o.Output.Path)
	got, err := os.ReadFile(filepath.Join(root, layerdisk.LayerDir(126), "d/126"))
	require.NoError(t, err)
	require.Len(t, got, 12600)
}

func TestBuildTwoBlobsOfOneLayer(t *testing.T) {
	r := newTestRegistry(t)
	raw := makeTar(t, tarContent{"a": bigContent(t, 1<<20)})
	gz, zs := gzipLayer(t, raw), zstdLayer(t, raw)
	first := r.putImage(t, "a", "1", forgeImage(t, amd64, created, gz))
	second := r.putImage(t, "b", "1", forgeImage(t, amd64, created, zs))
	o := buildOptions(t, first, second)
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	ix := readDisk(t, o.Output.Path)
	require.Len(t, ix.Layers, 1)
	require.Len(t, ix.Images, 2)
	// Nobody has proved what is in the other blob.
	require.Equal(t, []layerdisk.Blob{{Digest: gz.descriptor().Digest, MediaType: gz.mediaType, Size: int64(len(gz.blob))}}, ix.Layers[0].Blobs)
	require.Zero(t, r.blobGets(zs.descriptor().Digest))
}

// TestBuildImpliedDirectories has a layer that puts a file into a directory which it does not mention. On each stack
// that directory looks as it does there, and only the stack finds the layer.
func TestBuildImpliedDirectories(t *testing.T) {
	for _, fileSystem := range []string{layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4} {
		t.Run(fileSystem, func(t *testing.T) {
			r := newTestRegistry(t)
			open, private := gzipLayer(t, makeTar(t, tarContent{"tmp/": ""})), gzipLayer(t, privateTmp(t))
			top := gzipLayer(t, makeTar(t, tarContent{"tmp/file": "x"}))
			images := []string{
				r.putImage(t, "a", "1", forgeImage(t, amd64, created, open, top)),
				r.putImage(t, "b", "1", forgeImage(t, amd64, created, private, top)),
				r.putImage(t, "c", "1", forgeImage(t, amd64, created, open, private, top)),
			}
			o := buildOptions(t, images...)
			o.Output.FileSystem = fileSystem
			_, err := Build(t.Context(), o)
			require.NoError(t, err)
			require.Equal(t, 1, r.blobGets(top.descriptor().Digest))
			root := requireSound(t, o.Output.Path)
			ix := readDisk(t, o.Output.Path)
			lookup := layerdisk.NewLookup(ix)
			_, found := lookup.Layer(top.trueDiffID())
			require.False(t, found, "the diff ID alone does not say which look is meant")
			_, found = lookup.Layer(open.trueDiffID())
			require.True(t, found)
			require.Len(t, ix.Layers, 4, "the stacks of b and c give the same")
			for i, mode := range []os.FileMode{0o755, 0o700, 0o700} {
				stack := lookup.Stack(ix.Images[i].ChainID)
				last := stack[len(stack)-1]
				require.True(t, last.StackBound)
				require.Equal(t, top.trueDiffID(), last.DiffID)
				dir := filepath.Join(root, layerdisk.LayerDir(last.Number), "tmp")
				info, err := os.Stat(dir)
				require.NoError(t, err)
				require.Equal(t, mode, info.Mode().Perm(), "image %d", i)
				content, err := os.ReadFile(filepath.Join(dir, "file"))
				require.NoError(t, err)
				require.Equal(t, "x", string(content))
			}
		})
	}
}

// TestOutputStorageFull: a disk that would fit its device, on storage that has run full, is not one that is too small.
func TestOutputStorageFull(t *testing.T) {
	ref := onePut(t, gzipLayer(t, makeTar(t, tarContent{"a": bigContent(t, 6<<20)})))
	file := filepath.Join(tinyFS(t, "2m"), "device")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 64<<20))
	loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, device.DetachLoop(context.WithoutCancel(t.Context()), loop)) }()
	_, err = Build(t.Context(), Options{Images: []string{ref}, Output: Output{Path: loop.Path}})
	require.ErrorContains(t, err, "the storage that holds "+loop.Path+" has run full")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.NotErrorIs(t, err, ErrTooSmall)
}
