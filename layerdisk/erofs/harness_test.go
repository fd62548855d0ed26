package erofs_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/sysx"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/erofs"
	"berth.dev/berth/layerdisk/tree"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// layerTar writes layer archives.
type layerTar struct {
	t   testing.TB
	buf bytes.Buffer
	tw  *tar.Writer
}

func newTar(t testing.TB) *layerTar {
	l := &layerTar{t: t}
	l.tw = tar.NewWriter(&l.buf)
	return l
}

func (l *layerTar) add(h tar.Header, data string) *layerTar {
	l.t.Helper()
	h.Size = int64(len(data))
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(1_700_000_000, 123_456_789)
	}
	h.Format = tar.FormatPAX
	require.NoError(l.t, l.tw.WriteHeader(&h))
	_, err := l.tw.Write([]byte(data))
	require.NoError(l.t, err)
	return l
}

func (l *layerTar) dir(name string, mode int64) *layerTar {
	l.t.Helper()
	return l.add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, "")
}

func (l *layerTar) file(name, data string) *layerTar {
	l.t.Helper()
	return l.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data)
}

func (l *layerTar) symlink(name, target string) *layerTar {
	l.t.Helper()
	return l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "")
}

func (l *layerTar) link(name, target string) *layerTar {
	l.t.Helper()
	return l.add(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, "")
}

func (l *layerTar) bytes() []byte {
	l.t.Helper()
	require.NoError(l.t, l.tw.Close())
	return l.buf.Bytes()
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

func readLayers(t testing.TB, f io.WriterAt, layers ...[]byte) erofs.Image {
	t.Helper()
	img := erofs.Image{UUID: testUUID, DataEnd: 1}
	for i, l := range layers {
		w := &offsetWriter{f: f, off: int64(img.DataEnd) * tree.BlockSize}
		tr, err := tree.Read(t.Context(), bytes.NewReader(l), w, tree.Limits{})
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

func mount(t testing.TB, source, kind, options string, flags uintptr) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount(source, dir, kind, flags, options))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func mountImage(t testing.TB, file string) string {
	t.Helper()
	return mount(t, attachLoop(t, file), "erofs", "", unix.MS_RDONLY)
}

// apply unpacks a layer with containerd into a tmpfs.
func apply(t testing.TB, layer []byte) (string, error) {
	t.Helper()
	dir := filepath.Join(mount(t, "tmpfs", "tmpfs", "", 0), "fs")
	require.NoError(t, os.Mkdir(dir, 0o755))
	_, err := archive.Apply(t.Context(), dir, bytes.NewReader(layer), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	return dir, err
}

// seen is everything that lstat, listxattr and reading tell about a name.
type seen struct {
	Mode, Nlink, UID, GID uint32
	Size                  int64
	Rdev                  uint64
	Mtime                 string
	Target, Content       string
	Xattrs                string
	Group                 string // first path of the same inode
}

// look walks a directory with nothing but system calls. Sizes of directories are left out, because every file system
// counts them its own way.
func look(t testing.TB, root string) map[string]seen {
	t.Helper()
	out := make(map[string]seen)
	groups := make(map[uint64]string)
	require.NoError(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		s := seen{
			Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Size: st.Size, Rdev: st.Rdev,
			Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec), Group: rel,
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			s.Size = 0
		case unix.S_IFLNK:
			if s.Target, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s.Content = fmt.Sprintf("%d %x", len(b), sha256.Sum256(b))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first, ok := groups[st.Ino]; ok {
				s.Group = first
			} else {
				groups[st.Ino] = rel
			}
		}
		s.Xattrs, err = xattrsOf(p)
		out[rel] = s
		return err
	}))
	return out
}

func xattrsOf(p string) (string, error) {
	names, err := sysx.LListxattr(p)
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	var b strings.Builder
	for _, n := range names {
		v, err := sysx.LGetxattr(p, n)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%q=%x\n", n, v)
	}
	return b.String(), nil
}

// requireSame compares an unpacked layer with what Apply made of it, entry by entry. untimed are the names that Apply
// gives the time of the clock.
func requireSame(t testing.TB, want, got map[string]seen, untimed ...string) {
	t.Helper()
	for _, p := range append(untimed, ".") {
		w, ok := want[p]
		require.True(t, ok, "no %q", p)
		w.Mtime = "0.000000000"
		want[p] = w
	}
	paths := make([]string, 0, len(want))
	for p := range want {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, cmp.Compare[string])
	bad := 0
	for _, p := range paths {
		g, ok := got[p]
		if !ok {
			t.Errorf("%q is missing", p)
			bad++
		} else if g != want[p] {
			t.Errorf("%q differs:\nwant %+v\ngot  %+v", p, want[p], g)
			bad++
		}
		if bad > 20 {
			t.FailNow()
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q should not be there", p)
		}
	}
}

func base36(i int) string { return strconv.FormatInt(int64(i), 36) }

func tarFile(name string, records map[string]string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, PAXRecords: records}
}
