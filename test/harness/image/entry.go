// Package image forges container images from trees described in Go: every kind of entry that a layer can hold, the
// odd ones included.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"time"
)

// Entry is one entry of a layer's tar, in the order given.
type Entry struct {
	header  tar.Header
	content []byte
}

// Option changes an entry.
type Option func(*Entry)

// Mode sets permission bits, setuid (04000), setgid (02000) and sticky (01000).
func Mode(mode int64) Option { return func(e *Entry) { e.header.Mode = mode } }

// Owner sets numeric owner and group.
func Owner(uid, gid int) Option { return func(e *Entry) { e.header.Uid, e.header.Gid = uid, gid } }

// Mtime sets the modification time, to the nanosecond.
func Mtime(t time.Time) Option { return func(e *Entry) { e.header.ModTime = t } }

// Xattr adds an extended attribute by its full name.
func Xattr(name, value string) Option {
	return func(e *Entry) { e.header.PAXRecords["SCHILY.xattr."+name] = value }
}

// defaultMtime is any fixed time, so that forged layers have the same digests in every run.
var defaultMtime = time.Unix(1_700_000_000, 0) //nolint:gochecknoglobals // a constant

func entry(header tar.Header, content []byte, opts []Option) Entry {
	header.ModTime = defaultMtime
	header.PAXRecords = map[string]string{}
	header.Format = tar.FormatPAX
	header.Size = int64(len(content))
	e := Entry{header: header, content: content}
	for _, o := range opts {
		o(&e)
	}
	return e
}

// Dir is a directory, mode 0755.
func Dir(path string, opts ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: 0o755}, nil, opts)
}

// File is a regular file, mode 0644.
func File(path, content string, opts ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644}, []byte(content), opts)
}

// Symlink points to target.
func Symlink(path, target string, opts ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeSymlink, Name: path, Linkname: target, Mode: 0o777}, nil, opts)
}

// HardLink is a further name of the file at target, a path from the layer's root.
func HardLink(path, target string) Entry {
	return entry(tar.Header{Typeflag: tar.TypeLink, Name: path, Linkname: target, Mode: 0o644}, nil, nil)
}

// CharDevice is a character device node.
func CharDevice(path string, major, minor int64, opts ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeChar, Name: path, Devmajor: major, Devminor: minor, Mode: 0o600}, nil, opts)
}

// BlockDevice is a block device node.
func BlockDevice(path string, major, minor int64, opts ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeBlock, Name: path, Devmajor: major, Devminor: minor, Mode: 0o600}, nil, opts)
}

// FIFO is a named pipe.
func FIFO(path string, opts ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeFifo, Name: path, Mode: 0o644}, nil, opts)
}

// Whiteout deletes base in dir of the layers below; dir is "" for the root.
func Whiteout(dir, base string) Entry {
	return File(join(dir, ".wh."+base), "")
}

// Opaque hides what the layers below have in dir.
func Opaque(dir string) Entry {
	return File(join(dir, ".wh..wh..opq"), "")
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// Tar is the uncompressed layer with the entries in their order.
func Tar(entries ...Entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.header
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("write header of %s: %w", h.Name, err)
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, fmt.Errorf("write %s: %w", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end tar: %w", err)
	}
	return b.Bytes(), nil
}
