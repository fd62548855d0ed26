// Package layertest makes layer archives and looks at unpacked layers, for tests that compare what berth makes of an archive
// with what containerd does.
package layertest

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Tar writes layer archives.
type Tar struct {
	// Writer takes headers that Add would not write.
	Writer *tar.Writer

	t   testing.TB
	buf bytes.Buffer
}

func NewTar(t testing.TB) *Tar {
	l := &Tar{t: t}
	l.Writer = tar.NewWriter(&l.buf)
	return l
}

func (l *Tar) Add(h tar.Header, data string) *Tar {
	l.t.Helper()
	h.Size = int64(len(data))
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(1_700_000_000, 123_456_789)
	}
	h.Format = tar.FormatPAX
	require.NoError(l.t, l.Writer.WriteHeader(&h))
	_, err := l.Writer.Write([]byte(data))
	require.NoError(l.t, err)
	return l
}

func (l *Tar) Dir(name string, mode int64) *Tar {
	l.t.Helper()
	return l.Add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, "")
}

func (l *Tar) File(name, data string) *Tar {
	l.t.Helper()
	return l.Add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data)
}

func (l *Tar) Symlink(name, target string) *Tar {
	l.t.Helper()
	return l.Add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "")
}

func (l *Tar) Link(name, target string) *Tar {
	l.t.Helper()
	return l.Add(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, "")
}

func (l *Tar) Bytes() []byte {
	l.t.Helper()
	require.NoError(l.t, l.Writer.Close())
	return l.buf.Bytes()
}

// Xattrs are the PAX records for extended attributes, given as names and values in turn.
func Xattrs(pairs ...string) map[string]string {
	m := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		m["SCHILY.xattr."+pairs[i]] = pairs[i+1]
	}
	return m
}
