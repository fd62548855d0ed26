package attrs_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"github.com/zeebo/blake3"

	"berth.dev/berth/layerdisk/attrs"
)

const header = "berth-attrs 1\n"

func decodeAll(r io.Reader) ([]attrs.Entry, string, error) {
	d := attrs.NewDecoder(r)
	var entries []attrs.Entry
	for {
		e, err := d.Next()
		if errors.Is(err, io.EOF) {
			digest, err := d.Digest()
			return entries, digest, err
		}
		if err != nil {
			return nil, "", err
		}
		entries = append(entries, e)
	}
}

// TestGrammar pins the bytes of the listing: a change of them changes the digest of every layer there is.
func TestGrammar(t *testing.T) {
	zeros := strings.Repeat("0", 62)
	want := header +
		`-dash f 644 0 0 0.000000000 size=0 content=01` + zeros + "\n" +
		`. d 755 0 0 -1.500000000` + "\n" +
		`a\x20b\x3dc\x5c\x0a\xff f 4755 3000000000 4294967295 1700000000.000000001 size=5 content=ab` + zeros[2:] + `cd` +
		` xattr:security.capability=x\x20y xattr:user.a\x3db=\x00\x01\x02 xattr:user.empty=` + "\n" +
		`block b 660 0 0 0.000000000 device=259:1000` + "\n" +
		`char c 0 0 0 0.000000000 device=0:0` + "\n" +
		`d d 1777 0 0 0.000000000 xattr:trusted.overlay.opaque=y` + "\n" +
		`d/fifo p 600 0 0 0.000000000` + "\n" +
		`d/link f 4755 3000000000 4294967295 1700000000.000000001 size=5 link=a\x20b\x3dc\x5c\x0a\xff` +
		` xattr:security.capability=x\x20y xattr:user.a\x3db=\x00\x01\x02 xattr:user.empty=` + "\n" +
		`d/sym l 777 0 0 0.000000000 target=../a\x20b\xfe\x3d` + "\n" +
		`socket s 755 0 0 0.000000000` + "\n"
	var buf bytes.Buffer
	enc := attrs.NewEncoder(&buf)
	for _, e := range sample() {
		require.NoError(t, enc.Encode(e))
	}
	digest, err := enc.Close()
	require.NoError(t, err)
	require.Equal(t, want, buf.String())
	sum := blake3.Sum256([]byte(want))
	require.Equal(t, "blake3:"+hex.EncodeToString(sum[:]), digest)

	for name, r := range map[string]io.Reader{
		"at once": strings.NewReader(want), "by bytes": iotest.OneByteReader(strings.NewReader(want)),
	} {
		got, gotDigest, err := decodeAll(r)
		require.NoError(t, err, name)
		require.Equal(t, sample(), got, name)
		require.Equal(t, digest, gotDigest, name)
	}
}

func TestEmptyListing(t *testing.T) {
	digest, err := attrs.Digest(slices.Values([]attrs.Entry(nil)))
	require.NoError(t, err)
	got, gotDigest, err := decodeAll(strings.NewReader(header))
	require.NoError(t, err)
	require.Empty(t, got)
	require.Equal(t, digest, gotDigest)
}

func TestDecodeRefuses(t *testing.T) {
	const dir = "d d 755 0 0 0.000000000"
	hash := strings.Repeat("0", 63) + "1"
	for _, tt := range []struct{ name, listing, want string }{
		{"nothing", "", "does not begin"},
		{"other header", "berth-attrs 2\n", "does not begin"},
		{"header cut", "berth-attrs 1", "ends within a line"},
		{"cut line", header + dir, "ends within a line"},
		{"empty line", header + "\n", "fields"},
		{"few fields", header + "d d 755 0 0\n", "fields"},
		{"carriage return", header + dir + "\r\n", "mtime"},
		{"two spaces", header + "d d  755 0 0 0.000000000\n", "mode"},
		{"trailing space", header + dir + " \n", "field without a value"},
		{"not sorted", header + "e d 755 0 0 0.000000000\n" + dir + "\n", "not sorted"},
		{"twice", header + dir + "\n" + dir + "\n", "not sorted"},
		{"path empty", header + " d 755 0 0 0.000000000\n", "not a clean path"},
		{"path absolute", header + "/d d 755 0 0 0.000000000\n", "not a clean path"},
		{"path up", header + "../d d 755 0 0 0.000000000\n", "not a clean path"},
		{"path dots", header + "d/../d d 755 0 0 0.000000000\n", "not a clean path"},
		{"path ends in slash", header + "d/ d 755 0 0 0.000000000\n", "not a clean path"},
		{"path with NUL", header + `d\x00 d 755 0 0 0.000000000` + "\n", "not a clean path"},
		{"path long", header + strings.Repeat("a/", 2048) + "a d 755 0 0 0.000000000\n", "longer than 4095"},
		{"name long", header + strings.Repeat("a", 256) + " d 755 0 0 0.000000000\n", "longer than 255"},
		{"needless escape", header + `\x64 d 755 0 0 0.000000000` + "\n", "escape"},
		{"escape in capitals", header + `\xFF d 755 0 0 0.000000000` + "\n", "escape"},
		{"escape cut", header + `d\xf d 755 0 0 0.000000000` + "\n", "backslash"},
		{"raw byte", header + "d\xff d 755 0 0 0.000000000\n", "not escaped"},
		{"type unknown", header + "d D 755 0 0 0.000000000\n", "unknown type"},
		{"type of two letters", header + "d dd 755 0 0 0.000000000\n", "one letter"},
		{"mode with zero", header + "d d 0755 0 0 0.000000000\n", "canonical"},
		{"mode with type bits", header + "d d 40755 0 0 0.000000000\n", "bits other than"},
		{"mode decimal", header + "d d 789 0 0 0.000000000\n", "mode"},
		{"uid negative", header + "d d 755 -1 0 0.000000000\n", "uid"},
		{"uid too large", header + "d d 755 4294967296 0 0.000000000\n", "uid"},
		{"uid with plus", header + "d d 755 +1 0 0.000000000\n", "uid"},
		{"mtime without fraction", header + "d d 755 0 0 0\n", "mtime"},
		{"mtime short", header + "d d 755 0 0 0.5\n", "canonical"},
		{"mtime long", header + "d d 755 0 0 0.1000000000\n", "nanoseconds"},
		{"mtime minus zero", header + "d d 755 0 0 -0.000000000\n", "canonical"},
		{"directory with size", header + dir + " size=1\n", "size 1 on type"},
		{"directory with zero size", header + dir + " size=0\n", "canonical"},
		{"directory with target", header + dir + " target=x\n", "target on type"},
		{"directory with device", header + dir + " device=1:1\n", "device numbers on type"},
		{"directory as link", header + "b d 755 0 0 0.000000000\n" + dir + " link=b\n", "directory is a hard link"},
		{"file without size", header + "f f 644 0 0 0.000000000 content=" + hash + "\n", "canonical"},
		{"file without content", header + "f f 644 0 0 0.000000000 size=0\n", "canonical"},
		{"file negative", header + "f f 644 0 0 0.000000000 size=-1 content=" + hash + "\n", "negative"},
		{"content short", header + "f f 644 0 0 0.000000000 size=0 content=00\n", "32 bytes"},
		{"content capitals", header + "f f 644 0 0 0.000000000 size=0 content=" + strings.Repeat("A", 64) + "\n", "canonical"},
		{"fields swapped", header + "f f 644 0 0 0.000000000 content=" + hash + " size=0\n", "canonical"},
		{"field twice", header + "f f 644 0 0 0.000000000 size=0 size=0 content=" + hash + "\n", "canonical"},
		{"field unknown", header + dir + " flags=1\n", "unknown field"},
		{"link with content", header + "f f 644 0 0 0.000000000 size=0 content=" + hash + " link=e\n", "content on an entry"},
		{"link to itself", header + "f f 644 0 0 0.000000000 size=0 link=f\n", "does not stand before"},
		{"link forward", header + "f f 644 0 0 0.000000000 size=0 link=g\n", "does not stand before"},
		{"link empty", header + "f f 644 0 0 0.000000000 size=0 link=\n", "canonical"},
		{"symlink without target", header + "l l 777 0 0 0.000000000\n", "target of 0 bytes"},
		{"symlink target long", header + "l l 777 0 0 0.000000000 target=" + strings.Repeat("a", 4096) + "\n", "target of 4096 bytes"},
		{"device without number", header + "c c 644 0 0 0.000000000\n", "canonical"},
		{"device number cut", header + "c c 644 0 0 0.000000000 device=1\n", "device"},
		{"xattrs not sorted", header + dir + " xattr:user.b=1 xattr:user.a=1\n", "canonical"},
		{"xattr twice", header + dir + " xattr:user.a=1 xattr:user.a=2\n", "canonical"},
		{"xattr without name", header + dir + " xattr:=1\n", "xattr name"},
		{"xattr name long", header + dir + " xattr:" + strings.Repeat("a", 256) + "=1\n", "xattr name"},
		{"xattr value long", header + dir + " xattr:user.a=" + strings.Repeat("a", 65537) + "\n", "65537 bytes"},
		{"xattr of the node", header + dir + " xattr:security.selinux=x\n", "canonical"},
		{"line too long", header + strings.Repeat("a", 17<<20), "line of more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := decodeAll(strings.NewReader(tt.listing))
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, tt.want)
			require.Less(t, len(err.Error()), 6000, "message repeats hostile input")
		})
	}
	t.Run("error of the reader", func(t *testing.T) {
		_, _, err := decodeAll(io.MultiReader(strings.NewReader(header), iotest.ErrReader(io.ErrClosedPipe)))
		require.ErrorIs(t, err, io.ErrClosedPipe)
		require.NotErrorIs(t, err, errdefs.ErrDataLoss)
	})
	t.Run("digest too early", func(t *testing.T) {
		_, err := attrs.NewDecoder(strings.NewReader(header)).Digest()
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	})
}

func TestEncodeRefuses(t *testing.T) {
	valid := attrs.Entry{Path: "f", Type: attrs.Regular}
	for name, change := range map[string]func(*attrs.Entry){
		"path":           func(e *attrs.Entry) { e.Path = "a//b" },
		"type":           func(e *attrs.Entry) { e.Type = 'x' },
		"mode":           func(e *attrs.Entry) { e.Mode = 0o100644 },
		"nanoseconds":    func(e *attrs.Entry) { e.MtimeNsec = 1e9 },
		"target":         func(e *attrs.Entry) { e.Target = "x" },
		"device":         func(e *attrs.Entry) { e.DevMinor = 1 },
		"symlink size":   func(e *attrs.Entry) { e.Type, e.Target, e.Size = attrs.Symlink, "abc", 4 },
		"directory size": func(e *attrs.Entry) { e.Type, e.Size = attrs.Directory, 4096 },
		"link's content": func(e *attrs.Entry) { e.HardLink, e.Content = "e", [32]byte{1} },
		"link forward":   func(e *attrs.Entry) { e.HardLink = "g" },
		"xattr NUL":      func(e *attrs.Entry) { e.Xattrs = map[string][]byte{"user.\x00": nil} },
		"large xattrs": func(e *attrs.Entry) {
			e.Xattrs = make(map[string][]byte)
			for i := range 17 {
				e.Xattrs["user."+string(rune('a'+i))] = make([]byte, 1<<16)
			}
		},
		"many xattrs":     func(e *attrs.Entry) { e.Xattrs = manyXattrs() },
		"contents of dir": func(e *attrs.Entry) { e.Type, e.Content = attrs.Directory, [32]byte{1} },
	} {
		e := valid
		change(&e)
		require.ErrorIs(t, attrs.NewEncoder(nil).Encode(e), errdefs.ErrInvalidArgument, name)
	}
	enc := attrs.NewEncoder(nil)
	require.NoError(t, enc.Encode(valid))
	require.ErrorIs(t, enc.Encode(valid), errdefs.ErrInvalidArgument)
	require.ErrorIs(t, enc.Encode(attrs.Entry{Path: "e", Type: attrs.FIFO}), errdefs.ErrInvalidArgument)
	_, _, err := attrs.Store(slices.Values([]attrs.Entry{valid, valid}))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

// TestNodeLabels has the labels that a node gives by itself on one side only.
func TestNodeLabels(t *testing.T) {
	plain := attrs.Entry{Path: "f", Type: attrs.FIFO, Xattrs: map[string][]byte{"security.ima": {1}}}
	labelled := plain
	labelled.Xattrs = map[string][]byte{"security.ima": {1}, "security.selinux": []byte("l\x00"), "security.SMACK64EXEC": {2}}
	a, err := attrs.Digest(slices.Values([]attrs.Entry{plain}))
	require.NoError(t, err)
	b, err := attrs.Digest(slices.Values([]attrs.Entry{labelled}))
	require.NoError(t, err)
	require.Equal(t, a, b)
	require.Empty(t, attrs.Diff([]attrs.Entry{plain}, []attrs.Entry{labelled}))
	require.Len(t, attrs.Diff([]attrs.Entry{plain}, []attrs.Entry{{Path: "f", Type: attrs.FIFO}}), 1)
}

func manyXattrs() map[string][]byte {
	m := make(map[string][]byte)
	for i := range 340 {
		m["user."+strings.Repeat("a", 200)+string(rune('a'+i%26))+strings.Repeat("b", i/26)] = nil
	}
	return m
}

// TestLargestEntry has every attribute at its limit, and every byte escaped.
func TestLargestEntry(t *testing.T) {
	e := attrs.Entry{Path: strings.Repeat("\n", 255) + strings.Repeat("/"+strings.Repeat("\n", 255), 15), Type: attrs.Symlink,
		Target: strings.Repeat("\n", attrs.MaxPathBytes), Size: attrs.MaxPathBytes, Xattrs: make(map[string][]byte)}
	for i := range 16 {
		e.Xattrs["user."+strings.Repeat("\n", 240)+string(rune('a'+i))] = make([]byte, attrs.MaxXattrValueBytes)
	}
	require.Len(t, e.Path, attrs.MaxPathBytes)
	stored, digest, err := attrs.Store(slices.Values([]attrs.Entry{e}))
	require.NoError(t, err)
	got, gotDigest, err := attrs.Load(bytes.NewReader(stored), 1<<30)
	require.NoError(t, err)
	require.Equal(t, []attrs.Entry{e}, got)
	require.Equal(t, digest, gotDigest)
}

func TestLoadRefuses(t *testing.T) {
	compress := func(s string) []byte {
		var buf bytes.Buffer
		z, err := zstd.NewWriter(&buf)
		require.NoError(t, err)
		_, err = z.Write([]byte(s))
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return buf.Bytes()
	}
	stored, _, err := attrs.Store(slices.Values(sample()))
	require.NoError(t, err)
	file := "f f 644 0 0 0.000000000 size=0 content=" + strings.Repeat("0", 63) + "1\n"
	for _, tt := range []struct {
		name string
		data []byte
		max  int64
		want string
	}{
		{"nothing", nil, 1 << 20, "does not begin"},
		{"not zstd", []byte("berth-attrs 1\n"), 1 << 20, "decompress"},
		{"cut", stored[:len(stored)-5], 1 << 20, "decompress"},
		{"longer than allowed", stored, 100, "longer than allowed"},
		{"bomb", compress(header + strings.Repeat("a", 100<<20)), 1 << 30, "line of more than"},
		{"link to nothing", compress(header + "f f 644 0 0 0.000000000 size=0 link=e\n"), 1 << 20, "hard link to e"},
		{"link to a link", compress(header + file + "g f 644 0 0 0.000000000 size=0 link=f\nh f 644 0 0 0.000000000 size=0 link=g\n"), 1 << 20, "hard link to g"},
		{"link of another mode", compress(header + file + "g f 600 0 0 0.000000000 size=0 link=f\n"), 1 << 20, "hard link to f"},
		{"link of another type", compress(header + file + "g p 644 0 0 0.000000000 link=f\n"), 1 << 20, "hard link to f"},
		{"link with xattrs", compress(header + file + "g f 644 0 0 0.000000000 size=0 link=f xattr:user.a=1\n"), 1 << 20, "hard link to f"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := attrs.Load(bytes.NewReader(tt.data), tt.max)
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

// FuzzDecode wants every listing that is accepted to be the one that its entries give.
func FuzzDecode(f *testing.F) {
	var buf bytes.Buffer
	enc := attrs.NewEncoder(&buf)
	for _, e := range sample() {
		if err := enc.Encode(e); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(buf.Bytes())
	f.Add([]byte(header))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, digest, err := decodeAll(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, errdefs.ErrDataLoss) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		var again bytes.Buffer
		enc := attrs.NewEncoder(&again)
		for _, e := range entries {
			if err := enc.Encode(e); err != nil {
				t.Fatalf("accepted, but cannot be written: %v", err)
			}
		}
		digestAgain, err := enc.Close()
		if err != nil || digestAgain != digest || !bytes.Equal(again.Bytes(), data) {
			t.Fatalf("another listing of the same entries: %v", err)
		}
		if d := attrs.Diff(entries, entries); len(d) != 0 {
			t.Fatalf("differs from itself: %v", d)
		}
	})
}

// FuzzLoad reads compressed listings.
func FuzzLoad(f *testing.F) {
	stored, _, err := attrs.Store(slices.Values(sample()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(stored)
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, digest, err := attrs.Load(bytes.NewReader(data), 1<<20)
		if err != nil {
			return
		}
		_, again, err := attrs.Store(slices.Values(entries))
		if err != nil || again != digest {
			t.Fatalf("stored again it has digest %s, not %s: %v", again, digest, err)
		}
	})
}
