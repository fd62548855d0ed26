// Package layertest makes layer archives and looks at unpacked layers, for tests that compare what berth makes of an
// archive with what containerd does.
package layertest

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Tar makes one layer archive, entry by entry.
type Tar struct {
	// Writer takes headers that Add would not write.
	Writer *tar.Writer

	t   testing.TB
	buf bytes.Buffer
}

// NewTar begins an archive; mistakes in making it end the test.
func NewTar(t testing.TB) *Tar {
	l := &Tar{t: t}
	l.Writer = tar.NewWriter(&l.buf)
	return l
}

// Add appends an entry with data as its contents. Without a time it gets one of November 2023, with nanoseconds.
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

// Dir appends a directory.
func (l *Tar) Dir(name string, mode int64) *Tar {
	l.t.Helper()
	return l.Add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, "")
}

// File appends a regular file with mode 0644.
func (l *Tar) File(name, data string) *Tar {
	l.t.Helper()
	return l.Add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data)
}

// Symlink appends a symbolic link.
func (l *Tar) Symlink(name, target string) *Tar {
	l.t.Helper()
	return l.Add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "")
}

// Link appends a hard link, whose header gives its target mode 0644.
func (l *Tar) Link(name, target string) *Tar {
	l.t.Helper()
	return l.Add(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, "")
}

// Bytes ends the archive and returns it.
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
