package tree

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// readBuffer holds many small headers and files and still fits a second-level cache.
const readBuffer = 256 << 10

// reader is the state of one Read.
type reader struct {
	layer *Layer
	src   source
	out   *blockWriter
	names *arena
	// size of all entries as they state it, and attributes is the length of their extended attributes.
	size, attributes int64
}

// source remembers what the archive's source itself complained of, to tell it from faults of the archive.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF { // a wrapped EOF is no end but an error
		s.err = err
	}
	return n, err
}

// class makes err, which reading the archive gave, an ErrInvalid unless the source is to blame.
func (s *source) class(err error) error {
	if s.err != nil {
		return s.err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return invalid("archive is damaged: %w", err)
}

// Read reads the uncompressed archive of one layer to its end, and appends the contents of all regular files to data,
// each padded with zeros to whole blocks, mostly in writes of 1 MiB; data may be written to by another goroutine than
// the caller's, but not after Read has returned. Long stretches of zeros (1 MiB and more, from a multiple of 64 KiB)
// become holes and are not written.
//
// Errors: ErrInvalid for a damaged archive and ErrLimit by class; what src, data or ctx gave is wrapped. After an error
// data holds garbage. Whether containerd would unpack what the archive says is found out by Layer.On.
func Read(ctx context.Context, src io.Reader, data io.Writer, limits Limits) (*Layer, error) {
	names := &arena{}
	r := &reader{
		layer: &Layer{limits: limits.withDefaults(), sparse: make(map[uint32][]Run), xattrs: newXattrTable(names)},
		out:   newBlockWriter(data),
		names: names,
	}
	r.src.Reader = src
	in := bufio.NewReaderSize(&r.src, readBuffer)
	if err := r.archive(ctx, tar.NewReader(in)); err != nil {
		// A failed write also shows as an error of the archive's side: only one of them is the cause.
		if werr := r.out.close(); werr != nil {
			return nil, werr
		}
		return nil, err
	}
	if err := r.out.close(); err != nil {
		return nil, err
	}
	if err := r.drain(ctx, in); err != nil {
		return nil, err
	}
	l := r.layer
	l.Blocks, l.sums, l.entries, l.Entries = r.out.blocks, slices.Clone(r.out.sums), slices.Clone(l.entries), int64(len(l.entries))
	l.xattrs.known = nil
	return l, nil
}

func (r *reader) archive(ctx context.Context, tr *tar.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) && r.src.err == nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read entry %d: %w", len(r.layer.entries)+1, r.src.class(err))
		}
		if err := r.entry(ctx, hdr, tr); err != nil {
			return fmt.Errorf("entry %d %q: %w", len(r.layer.entries), hdr.Name, err)
		}
	}
}

// drain reads what follows the archive's end, so that whoever hashes the stream sees all of it.
func (r *reader) drain(ctx context.Context, in io.Reader) error {
	left := r.layer.limits.MaxBytes - r.size
	for left >= 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(io.Discard, in, 1<<20)
		if errors.Is(err, io.EOF) && r.src.err == nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read past the archive: %w", r.src.class(err))
		}
		left -= n
	}
	return overLimit("bytes", r.layer.limits.MaxBytes)
}

// entry keeps what a header says, and writes the contents of a regular file unless its name gives it another meaning.
func (r *reader) entry(ctx context.Context, hdr *tar.Header, content io.Reader) error {
	l := r.layer
	e := entry{
		name: path.Clean(hdr.Name), link: hdr.Linkname, size: hdr.Size, kind: hdr.Typeflag, mode: uint16(hdr.Mode & 0o7777), //nolint:gosec // twelve bits
		uid: uint32(hdr.Uid), gid: uint32(hdr.Gid), //nolint:gosec // as chown(2) takes them
	}
	e.mtimeSec, e.mtimeNsec = boundTime(hdr.ModTime)
	// Linux keeps 12 bits of a major and 20 of a minor number; containerd lets mknod(2) cut off the rest and refuses
	// only what has more than 32.
	e.deviceNumber = hdr.Devmajor >= 0 && hdr.Devmajor <= math.MaxUint32 && hdr.Devminor >= 0 && hdr.Devminor <= math.MaxUint32
	if e.deviceNumber {
		e.devMajor, e.devMinor = uint32(hdr.Devmajor)&0xfff, uint32(hdr.Devminor)&0xfffff //nolint:gosec // checked
	}
	if err := r.count(hdr); err != nil {
		return err
	}
	if err := r.keepXattrs(&e, hdr.PAXRecords); err != nil {
		return err
	}
	base := path.Base(e.name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		l.whiteouts = true
	} else if hdr.Typeflag == tar.TypeReg && !isRoot(base) {
		c, err := r.out.file(ctx, fileReader{content, &r.src}, hdr.Size)
		if err != nil {
			return err
		}
		e.first, e.sum, e.sparse = c.first, c.sum, c.sparse
		if c.sparse {
			l.sparse[c.sum] = c.runs
		}
		l.Bytes += hdr.Size
	}
	e.name, e.link = r.names.keep(e.name), r.names.keep(e.link)
	l.entries = append(l.entries, e)
	return nil
}

// count charges an entry.
func (r *reader) count(hdr *tar.Header) error {
	l := r.layer
	if int64(len(l.entries)) >= l.limits.MaxEntries {
		return overLimit("entries", l.limits.MaxEntries)
	}
	if l.metadata += int64(len(hdr.Name) + len(hdr.Linkname)); l.metadata > l.limits.MaxMetadataBytes {
		return overLimit("bytes of names and attributes", l.limits.MaxMetadataBytes)
	}
	if r.size += hdr.Size; hdr.Size < 0 || r.size < 0 || r.size > l.limits.MaxBytes {
		return overLimit("bytes", l.limits.MaxBytes)
	}
	return nil
}

// keepXattrs keeps the extended attributes that containerd lets an archive set, in a fixed order, so that a layer with
// two bad ones always gives the same error.
func (r *reader) keepXattrs(e *entry, records map[string]string) error {
	var found []Xattr
	for key, value := range records {
		if name, ok := strings.CutPrefix(key, paxXattrPrefix); ok && !strings.HasPrefix(name, trustedPrefix) {
			found = append(found, Xattr{Name: name, Value: value})
			r.attributes += int64(len(name) + len(value))
		}
	}
	if r.layer.metadata+r.attributes > r.layer.limits.MaxMetadataBytes {
		return overLimit("bytes of names and attributes", r.layer.limits.MaxMetadataBytes)
	}
	slices.SortFunc(found, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	e.xattrs = r.layer.xattrs.store(found)
	return nil
}

// isRoot says that a clean path with this last element means the root, which containerd leaves alone.
func isRoot(base string) bool { return base == "/" || base == "." || base == ".." }

// boundTime gives times that containerd does not take as the epoch: those before it, and those that do not fit a signed
// 64-bit number of nanoseconds.
func boundTime(t time.Time) (sec int64, nsec uint32) {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0, 0
	}
	return t.Unix(), uint32(t.Nanosecond()) //nolint:gosec // below 1e9
}

// fileReader fills whole buffers from one file of the archive.
type fileReader struct {
	io.Reader
	src *source
}

// fill reads len(p) bytes.
func (f fileReader) fill(p []byte) error {
	if _, err := io.ReadFull(f.Reader, p); err != nil {
		return f.src.class(err)
	}
	return nil
}
