package accesslist_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
)

var (
	layerA = digest.FromString("a")
	layerB = digest.FromString("b")
	disk   = digest.FromString("disk")
)

func sample() *accesslist.List {
	return &accesslist.List{
		Image: "docker.io/library/app:1", Platform: "linux/amd64", Recorded: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Disk: disk,
		Metadata: []accesslist.Range{{Offset: 8192, Length: 4096}, {Offset: 0, Length: 4096}},
		Files: []accesslist.FileRange{
			{DiffID: layerB, Path: "usr/bin/app", Offset: 0, Length: 131072},
			{DiffID: layerA, Path: "lib/\xff\n\"odd\" ü name", Offset: 4096, Length: 1},
			{DiffID: layerB, Path: "usr/bin/app", Offset: 1 << 40, Length: 4096},
		},
	}
}

func TestEncodeDecode(t *testing.T) {
	encoded, err := sample().Encode()
	require.NoError(t, err)
	got, err := accesslist.Decode(encoded)
	require.NoError(t, err)
	require.Equal(t, sample(), got)
	again, err := got.Encode()
	require.NoError(t, err)
	require.Equal(t, encoded, again, "the same list has the same bytes")

	metadata, files := got.Size()
	require.EqualValues(t, 8192, metadata)
	require.EqualValues(t, 131072+1+4096, files)
	require.Equal(t, 2, got.FileCount())
}

func TestEncodedText(t *testing.T) {
	var text strings.Builder
	require.NoError(t, sample().WriteText(&text))
	require.Equal(t, fmt.Sprintf(`berth-accesslist 1
image docker.io/library/app:1
platform linux/amd64
recorded 2026-01-02T03:04:05Z
disk %s
m 8192 4096
m 0 4096
l %s
f 0 "usr/bin/app"
r 0 0 131072
l %s
f 1 "lib/\xff\n\"odd\" \u00fc name"
r 1 4096 1
r 0 1099511627776 4096
`, disk, layerB, layerA), text.String())
}

func TestCheckRefuses(t *testing.T) {
	file := func(change func(*accesslist.FileRange)) func(*accesslist.List) {
		return func(l *accesslist.List) { change(&l.Files[0]) }
	}
	path := func(p string) func(*accesslist.List) {
		return file(func(f *accesslist.FileRange) { f.Path = p })
	}
	for name, change := range map[string]func(*accesslist.List){
		"no image":             func(l *accesslist.List) { l.Image = "" },
		"line break in image":  func(l *accesslist.List) { l.Image = "a\nimage b" },
		"no platform":          func(l *accesslist.List) { l.Platform = "" },
		"metadata of no disk":  func(l *accesslist.List) { l.Disk = "" },
		"bad disk":             func(l *accesslist.List) { l.Disk = "sha256:1" },
		"bad diff ID":          file(func(f *accesslist.FileRange) { f.DiffID = "x" }),
		"negative offset":      file(func(f *accesslist.FileRange) { f.Offset = -1 }),
		"no length":            file(func(f *accesslist.FileRange) { f.Length = 0 }),
		"overflow":             file(func(f *accesslist.FileRange) { f.Offset, f.Length = 1<<50, 1<<62 }),
		"too much":             file(func(f *accesslist.FileRange) { f.Length = accesslist.MaxBytes }),
		"negative metadata":    func(l *accesslist.List) { l.Metadata[0].Offset = -1 },
		"too much metadata":    func(l *accesslist.List) { l.Metadata[0].Length = accesslist.MaxBytes },
		"too many parts":       func(l *accesslist.List) { l.Metadata = make([]accesslist.Range, accesslist.MaxRanges+1) },
		"time without meaning": func(l *accesslist.List) { l.Recorded = time.Unix(1<<60, 0) },
		"no path":              path(""),
		"absolute path":        path("/etc/passwd"),
		"path upwards":         path("../../etc/passwd"),
		"path upwards within":  path("a/../b"),
		"dot":                  path("."),
		"trailing slash":       path("a/"),
		"two slashes":          path("a//b"),
		"NUL":                  path("a\x00b"),
		"long name":            path(strings.Repeat("n", 256)),
		"long path":            path(strings.Repeat("n/", 2048) + "n"),
	} {
		t.Run(name, func(t *testing.T) {
			l := sample()
			change(l)
			require.ErrorIs(t, l.Check(), errdefs.ErrInvalidArgument)
			_, err := l.Encode()
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			// The same in a list that another program wrote.
			var text bytes.Buffer
			require.NoError(t, l.WriteText(&text))
			_, err = accesslist.Decode(zipped(t, text.Bytes()))
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	const head = "berth-accesslist 1\nimage a\nplatform linux/amd64\nrecorded 2026-01-02T03:04:05Z\n"
	good := "l " + layerA.String() + "\nf 0 \"a\"\nr 0 0 1\n"
	_, err := accesslist.Decode(zipped(t, []byte(head+good)))
	require.NoError(t, err)
	encoded, err := sample().Encode()
	require.NoError(t, err)
	for name, data := range map[string][]byte{
		"nothing":          nil,
		"no gzip":          []byte(head + good),
		"cut short":        encoded[:len(encoded)-10],
		"empty":            zipped(t, nil),
		"another file":     zipped(t, []byte("hello\n")),
		"another format":   zipped(t, []byte("berth-accesslist 2\n")),
		"unknown word":     zipped(t, []byte(head+"x 1\n")),
		"file of no layer": zipped(t, []byte(head+"f 0 \"a\"\n")),
		"part of no file":  zipped(t, []byte(head+"r 0 0 1\n")),
		"unquoted":         zipped(t, []byte(head+"l "+layerA.String()+"\nf 0 a\n")),
		"half quoted":      zipped(t, []byte(head+"l "+layerA.String()+"\nf 0 \"a\n")),
		"negative number":  zipped(t, []byte(head+"m -1 1\n")),
		"too many numbers": zipped(t, []byte(head+"m 1 1 1\n")),
		"not a number":     zipped(t, []byte(head+"m 1 x\n")),
		"large number":     zipped(t, []byte(head+"m 1 9223372036854775808\n")),
		"long line":        zipped(t, []byte(head+strings.Repeat("y", 20000))),
		"bomb":             zipped(t, []byte(head+strings.Repeat("l "+layerA.String()+"\n", 1<<20))),
		"bomb of parts":    zipped(t, []byte(head+strings.Repeat("m 0 1\n", accesslist.MaxRanges+1))),
		"bomb of files":    zipped(t, []byte(head+"l "+layerA.String()+"\n"+strings.Repeat("f 0 \""+strings.Repeat("n", 4000)+"\"\n", 17<<10))),
		"two images":       zipped(t, []byte(head+"image b\n")),
		"large":            make([]byte, accesslist.MaxEncodedBytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := accesslist.Decode(data)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		})
	}
}

func TestForKeepsWhatTheDiskHas(t *testing.T) {
	here := &layerdisk.Index{Layers: []layerdisk.Layer{{DiffID: layerB}}}
	l := sample()
	part, err := l.For(here, layerdisk.Identity{IndexDigest: disk}, 10000)
	require.NoError(t, err)
	require.Equal(t, []accesslist.Range{{Offset: 8192, Length: 10000 - 8192}, {Offset: 0, Length: 4096}}, part.Metadata)
	require.Equal(t, []accesslist.FileRange{l.Files[0], l.Files[2]}, part.Files)
	require.Equal(t, sample(), l, "the list itself stays")

	// After an update: another disk with the same layer.
	part, err = l.For(here, layerdisk.Identity{IndexDigest: layerA}, 10000)
	require.NoError(t, err)
	require.Empty(t, part.Metadata)
	require.Empty(t, part.Disk)
	require.Len(t, part.Files, 2)

	_, err = l.For(&layerdisk.Index{}, layerdisk.Identity{IndexDigest: layerA}, 10000)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

func zipped(t *testing.T, text []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func FuzzDecode(f *testing.F) {
	encoded, err := sample().Encode()
	require.NoError(f, err)
	f.Add(encoded)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := accesslist.Decode(data)
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			return
		}
		roundTrip(t, l)
	})
}

// FuzzText gets past the compression.
func FuzzText(f *testing.F) {
	var text bytes.Buffer
	require.NoError(f, sample().WriteText(&text))
	f.Add(text.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := accesslist.Decode(zipped(t, data))
		if err == nil {
			roundTrip(t, l)
		}
	})
}

func roundTrip(t *testing.T, l *accesslist.List) {
	t.Helper()
	encoded, err := l.Encode()
	require.NoError(t, err)
	again, err := accesslist.Decode(encoded)
	require.NoError(t, err)
	require.Equal(t, l, again)
}
