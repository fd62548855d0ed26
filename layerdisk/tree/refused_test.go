package tree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
)

// patched makes an archive of one entry of type '0' called f with n bytes of data and lets edit change the raw header;
// the checksum is made right again.
func patched(t testing.TB, n int, edit func(header []byte)) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: int64(n), Format: tar.FormatGNU}))
	_, err := tw.Write(bytes.Repeat([]byte("x"), n))
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	h := buf.Bytes()[:512]
	edit(h)
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return buf.Bytes()
}

func typed(t testing.TB, flag byte) []byte {
	return patched(t, 0, func(h []byte) { h[156] = flag })
}

func TestRefusesWhatContainerdRefuses(t *testing.T) {
	file := func(l *layertest.Tar, records map[string]string) *layertest.Tar {
		return l.Add(tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, PAXRecords: records}, "x")
	}
	link255 := func(l *layertest.Tar) *layertest.Tar {
		for i := range 257 {
			l.Symlink(fmt.Sprint(i), fmt.Sprint(i+1))
		}
		return l
	}
	for name, layer := range map[string][]byte{
		"whiteout of nothing":           layertest.NewTar(t).File(".wh.", "").Bytes(),
		"whiteout of dot":               layertest.NewTar(t).File("d/.wh..", "").Bytes(),
		"whiteout of dot dot":           layertest.NewTar(t).File("d/.wh...", "").Bytes(),
		"whiteout of a name present":    layertest.NewTar(t).File("f", "x").File(".wh.f", "").Bytes(),
		"whiteout of an opaque dir":     layertest.NewTar(t).Dir("d", 0o755).File(".wh.d", "").Bytes(),
		"whiteout twice":                layertest.NewTar(t).File(".wh.f", "").File(".wh.f", "").Bytes(),
		"whiteout with a long name":     layertest.NewTar(t).File(".wh."+strings.Repeat("n", 256), "").Bytes(),
		"hard link to nothing":          layertest.NewTar(t).Link("h", "missing").Bytes(),
		"hard link to later":            layertest.NewTar(t).Link("h", "f").File("f", "x").Bytes(),
		"hard link to itself":           layertest.NewTar(t).File("f", "x").Link("f", "f").Bytes(),
		"hard link loop":                layertest.NewTar(t).Link("a", "b").Link("b", "a").Bytes(),
		"hard link to removed":          layertest.NewTar(t).File("d/f", "x").File("d", "x").Link("h", "d/f").Bytes(),
		"hard link to a directory":      layertest.NewTar(t).Dir("d", 0o755).Link("h", "d").Bytes(),
		"hard link to the root":         layertest.NewTar(t).Link("h", "/").Bytes(),
		"hard link to dot dot":          layertest.NewTar(t).Link("h", "..").Bytes(),
		"hard link behind a file":       layertest.NewTar(t).File("f", "x").Link("h", "f/g").Bytes(),
		"hard link into itself":         layertest.NewTar(t).File("d/f", "x").Link("d", "d/f").Bytes(),
		"parent is a file":              layertest.NewTar(t).File("f", "x").File("f/g", "x").Bytes(),
		"grandparent is a file":         layertest.NewTar(t).File("f", "x").File("f/g/h", "x").Bytes(),
		"parent is a whiteout":          layertest.NewTar(t).File(".wh.d", "").File("d/f", "x").Bytes(),
		"parent is a link to a file":    layertest.NewTar(t).File("f", "x").Symlink("l", "f").File("l/g", "x").Bytes(),
		"parent is a link loop":         layertest.NewTar(t).Symlink("a", "b").Symlink("b", "a").File("a/f", "x").Bytes(),
		"parent is a link to itself":    layertest.NewTar(t).Symlink("a", "a").File("a/f", "x").Bytes(),
		"parent link through itself":    layertest.NewTar(t).Symlink("a", "a/b").File("a/f", "x").Bytes(),
		"too many links":                link255(layertest.NewTar(t)).File("0/f", "x").Bytes(),
		"long name":                     layertest.NewTar(t).File(strings.Repeat("n", 256), "x").Bytes(),
		"long name of a parent":         layertest.NewTar(t).File(strings.Repeat("n", 256)+"/f", "x").Bytes(),
		"long path":                     layertest.NewTar(t).File(strings.Repeat("n/", 2048)+"f", "x").Bytes(),
		"path one too long":             layertest.NewTar(t).File(strings.Repeat(strings.Repeat("n", 255)+"/", 15)+strings.Repeat("n", 255)+"/f", "x").Bytes(),
		"long link":                     layertest.NewTar(t).Symlink("l", strings.Repeat("n", 4096)).Bytes(),
		"empty link":                    layertest.NewTar(t).Symlink("l", "").Bytes(),
		"directory becomes a file":      layertest.NewTar(t).Dir("d/e", 0o755).File("d", "x").Bytes(),
		"directory goes":                layertest.NewTar(t).Dir("d/e", 0o755).File("d", "x").Dir("d", 0o755).Bytes(),
		"xattr without a name":          file(layertest.NewTar(t), layertest.Xattrs("user.", "x")).Bytes(),
		"security xattr without a name": file(layertest.NewTar(t), layertest.Xattrs("security.", "x")).Bytes(),
		"xattr with a long name":        file(layertest.NewTar(t), layertest.Xattrs("user."+strings.Repeat("n", 251), "x")).Bytes(),
		"xattr too large":               file(layertest.NewTar(t), layertest.Xattrs("user.x", strings.Repeat("x", 65537))).Bytes(),
		"short capability":              file(layertest.NewTar(t), layertest.Xattrs("security.capability", "x")).Bytes(),
		"capability version 1":          file(layertest.NewTar(t), layertest.Xattrs("security.capability", "\x00\x00\x00\x01"+strings.Repeat("\x00", 8))).Bytes(),
		"capability with odd flags":     file(layertest.NewTar(t), layertest.Xattrs("security.capability", "\xf1\x00\x00\x02"+strings.Repeat("\x00", 16))).Bytes(),
		"capability of nobody":          file(layertest.NewTar(t), layertest.Xattrs("security.capability", "\x01\x00\x00\x03"+strings.Repeat("\x00", 16)+"\xff\xff\xff\xff")).Bytes(),
		"broken ACL":                    file(layertest.NewTar(t), layertest.Xattrs("system.posix_acl_access", "\x02\x00\x00\x00\x01")).Bytes(),
		"incomplete ACL":                file(layertest.NewTar(t), layertest.Xattrs("system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff")).Bytes(),
		"default ACL on a file": file(layertest.NewTar(t), layertest.Xattrs("system.posix_acl_default",
			"\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x07\x00\xff\xff\xff\xff\x20\x00\x07\x00\xff\xff\xff\xff")).Bytes(),
		"huge device number": patched(t, 0, func(h []byte) { h[156] = '3'; copy(h[329:], "\x80\x00\x00\x02\x00\x00\x00\x00") }),
		"negative device":    patched(t, 0, func(h []byte) { h[156] = '3'; copy(h[337:], "\xff\xff\xff\xff\xff\xff\xff\xff") }),
		"huge FIFO device":   patched(t, 0, func(h []byte) { h[156] = '6'; copy(h[329:], "\x80\x00\x00\x02\x00\x00\x00\x00") }),
		"type 7":             typed(t, '7'),
		"type Z":             typed(t, 'Z'),
		"type S":             patched(t, 0, func(h []byte) { h[156] = 'S' }),
		"old GNU sparse": patched(t, 512, func(h []byte) {
			h[156] = 'S'
			copy(h[386:], "00000000000\x0000000001000\x00")
			copy(h[483:], "00000001000\x00")
		}),
		"bad checksum": func() []byte { b := layertest.NewTar(t).File("f", "x").Bytes(); b[2] ^= 1; return b }(),
		"garbage":      bytes.Repeat([]byte("garbage "), 128),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read(t, layer)
			require.ErrorIs(t, err, tree.ErrInvalid)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			if strings.Contains(err.Error(), "failed to") {
				t.Errorf("say what was refused: %v", err)
			}
			needRoot(t)
			_, err = layertest.Apply(t, layer)
			require.Error(t, err, "containerd takes it")
		})
	}
}

func TestTruncated(t *testing.T) {
	needRoot(t)
	layer := layertest.NewTar(t).Dir("d", 0o755).File("d/f", strings.Repeat("x", 1000)).Symlink(strings.Repeat("l", 200), "d").Bytes()
	for n := 0; n < len(layer); n += 61 {
		dir, aerr := layertest.Apply(t, layer[:n])
		tr, err := read(t, layer[:n])
		if aerr != nil {
			require.ErrorIs(t, err, tree.ErrInvalid, "%d bytes: containerd says %v", n, aerr)
			continue
		}
		require.NoError(t, err, "%d bytes", n)
		require.Equal(t, applied(t, dir), asSeen(t, tr))
	}
}

func TestLimits(t *testing.T) {
	deep := layertest.NewTar(t).File(strings.Repeat("a/", 500)+"f", "x").Bytes()
	files := layertest.NewTar(t).File("a", "1234567890").File("b", "1234567890").Bytes()
	holes := patched(t, 0, func(h []byte) { copy(h[124:136], "\x80\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00") })
	for name, c := range map[string]struct {
		layer  []byte
		limits tree.Limits
		ok     bool
	}{
		"entries just fit":       {files, tree.Limits{MaxEntries: 2}, true},
		"entries":                {files, tree.Limits{MaxEntries: 1}, false},
		"implied directories":    {deep, tree.Limits{MaxEntries: 500}, false},
		"implied just fit":       {deep, tree.Limits{MaxEntries: 501}, true},
		"bytes just fit":         {files, tree.Limits{MaxBytes: 6000}, true},
		"bytes":                  {files, tree.Limits{MaxBytes: 19}, false},
		"names":                  {files, tree.Limits{MaxMetadataBytes: 1}, false},
		"names just fit":         {files, tree.Limits{MaxMetadataBytes: 2}, true},
		"size beyond any disk":   {holes, tree.Limits{}, false},
		"trailing bytes":         {append(bytes.Clone(files), make([]byte, 4<<20)...), tree.Limits{MaxBytes: 1 << 20}, false},
		"trailing bytes allowed": {append(bytes.Clone(files), make([]byte, 4<<20)...), tree.Limits{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readOn(t, c.layer, c.limits, bottom(t))
			if c.ok {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, tree.ErrLimit)
			require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		})
	}
}

// Links that lead through links multiply; the work must stay bounded.
func TestLinkBomb(t *testing.T) {
	l := layertest.NewTar(t)
	l.Symlink("l0", strings.Repeat("./", 2000)+".")
	for i := range 30 {
		l.Symlink(fmt.Sprintf("l%d", i+1), strings.Repeat(fmt.Sprintf("l%d/", i), 800)+".")
	}
	for i := range 2000 {
		l.File(fmt.Sprintf("l30/l29/l28/f%d", i), "")
	}
	_, err := read(t, l.Bytes())
	require.Error(t, err)
	require.True(t, errors.Is(err, tree.ErrInvalid) || errors.Is(err, tree.ErrLimit), "%v", err)
}

func TestReaderAndWriterErrors(t *testing.T) {
	layer := layertest.NewTar(t).File("a", strings.Repeat("x", 3<<20)).File("b", strings.Repeat("x", 3<<20)).Bytes()
	cause := errors.New("cause")
	_, err := tree.Read(t.Context(), io.MultiReader(bytes.NewReader(layer[:1<<20]), iotest.ErrReader(cause)), io.Discard, tree.Limits{})
	require.ErrorIs(t, err, cause)
	require.NotErrorIs(t, err, tree.ErrInvalid)
	_, err = tree.Read(t.Context(), io.MultiReader(bytes.NewReader(layer), iotest.ErrReader(cause)), io.Discard, tree.Limits{})
	require.ErrorIs(t, err, cause, "an error behind the archive, such as a wrong digest, must not be lost")

	eof := fmt.Errorf("connection lost: %w", io.EOF)
	for _, n := range []int{0, 512, 1 << 20, len(layer) - 1024, len(layer)} {
		_, err = tree.Read(t.Context(), io.MultiReader(bytes.NewReader(layer[:n]), iotest.ErrReader(eof)), io.Discard, tree.Limits{})
		require.ErrorIs(t, err, eof, "after %d bytes: not the end of the layer", n)
	}

	for n := range 6 {
		w := &failingWriter{left: n, err: cause}
		_, err = tree.Read(t.Context(), bytes.NewReader(layer), w, tree.Limits{})
		require.ErrorIs(t, err, cause, "write %d", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &failingWriter{left: 1, at: cancel}
	_, err = tree.Read(ctx, bytes.NewReader(layer), w, tree.Limits{})
	require.ErrorIs(t, err, context.Canceled)
}

// failingWriter takes left writes and then fails, or calls at.
type failingWriter struct {
	left int
	err  error
	at   func()
}

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left--; w.left < 0 {
		if w.at != nil {
			w.at()
			return len(b), nil
		}
		return 0, w.err
	}
	return len(b), nil
}
