package erofs_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/erofs"
	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// offsetWriter appends to a file from a given position.
type offsetWriter struct {
	f   io.WriterAt
	off int64
}

func (w *offsetWriter) Write(b []byte) (int, error) {
	n, err := w.f.WriteAt(b, w.off)
	w.off += int64(n)
	return n, err
}

var testUUID = [16]byte{0xbe, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, 15}

// writeImage makes an image of the layers l/0, l/1, … in a new file.
func writeImage(t testing.TB, files []erofs.File, layers ...[]byte) (string, *erofs.Layout) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	img := readLayers(t, f, layers...)
	img.Files = files
	layout, err := erofs.Plan(img)
	require.NoError(t, err)
	require.NoError(t, layout.Write(t.Context(), f))
	require.NoError(t, layout.Commit(t.Context(), f, bytes.Repeat([]byte{0x5a}, erofs.HeaderSize)))
	fi, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, layout.SizeBytes(), fi.Size())
	return f.Name(), layout
}

// bottom is a tree without anything, for what is unpacked as an overlay.
func bottom(t testing.TB) *tree.Tree {
	t.Helper()
	l, err := tree.Read(t.Context(), bytes.NewReader(layertest.NewTar(t).Bytes()), io.Discard, tree.Limits{})
	require.NoError(t, err)
	tr, err := l.On(nil)
	require.NoError(t, err)
	return tr
}

func readLayers(t testing.TB, f io.WriterAt, layers ...[]byte) erofs.Image {
	t.Helper()
	img := erofs.Image{UUID: testUUID, DataEnd: 1}
	for i, l := range layers {
		w := &offsetWriter{f: f, off: int64(img.DataEnd) * tree.BlockSize}
		read, err := tree.Read(t.Context(), bytes.NewReader(l), w, tree.Limits{})
		require.NoError(t, err)
		tr, err := read.On([]*tree.Tree{bottom(t)})
		require.NoError(t, err)
		require.Equal(t, int64(img.DataEnd+tr.Blocks)*tree.BlockSize, w.off)
		img.Layers = append(img.Layers, erofs.Layer{Path: "l/" + base36(i), Tree: tr, FirstBlock: img.DataEnd})
		img.DataEnd += tr.Blocks
	}
	return img
}

// attachLoop attaches a file read-only and returns the device.
func attachLoop(t testing.TB, file string) string {
	t.Helper()
	backing, err := os.Open(file)
	require.NoError(t, err)
	defer backing.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	require.NoError(t, err)
	defer ctl.Close()
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		require.NoError(t, err)
		name := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(name, os.O_RDONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			require.NoError(t, unix.Mknod(name, unix.S_IFBLK|0o660, int(unix.Mkdev(7, uint32(n)))))
			dev, err = os.OpenFile(name, os.O_RDONLY, 0)
		}
		require.NoError(t, err)
		cfg := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY}}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
		if errors.Is(err, unix.EBUSY) { // another took it
			require.NoError(t, dev.Close())
			continue
		}
		require.NoError(t, err)
		t.Cleanup(func() {
			require.NoError(t, unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0))
			require.NoError(t, dev.Close())
		})
		return name
	}
}

func mountImage(t testing.TB, file string) string {
	t.Helper()
	return layertest.Mount(t, attachLoop(t, file), "erofs", "", unix.MS_RDONLY)
}

func base36(i int) string { return strconv.FormatInt(int64(i), 36) }

func tarFile(name string, records map[string]string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, PAXRecords: records}
}
