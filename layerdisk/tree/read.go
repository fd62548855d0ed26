package tree

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	// readBuffer holds many small headers and files and still fits a second-level cache.
	readBuffer = 256 << 10
)

// reader is the state of one Read.
type reader struct {
	t      *Tree
	limits Limits
	src    source
	out    *blockWriter
	names  arena

	entries, bytes, metadata int64

	// parentPath is the directory part of the last entry's name, "" if not known; parent is the inode it led to and
	// depth the length of the path it resolved to.
	parentPath string
	parent     Number
	depth      int
	hasLinks   bool
	steps      int
	dirTimes   []dirTime
	xattrs     xattrTable
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

type dirTime struct {
	name string
	sec  int64
	nsec uint32
}

// Read unpacks the uncompressed archive of one layer. It reads src to its end, and appends the contents of all regular
// files to data, each padded with zeros to whole blocks, mostly in writes of 1 MiB; data may be written to by another
// goroutine than the caller's, but not after Read has returned. Long stretches of zeros (1 MiB and more, from a
// multiple of 64 KiB) become holes and are not written.
//
// Errors: ErrInvalid and ErrLimit by class; what src, data or ctx gave is wrapped. After an error data holds garbage.
func Read(ctx context.Context, src io.Reader, data io.Writer, limits Limits) (*Tree, error) {
	r := &reader{
		t:      &Tree{sparse: make(map[Number][]Run), xattrs: [][]Xattr{nil}},
		limits: limits.withDefaults(),
		out:    newBlockWriter(data),
	}
	r.t.inodes = append(r.t.inodes, inode{mode: unix.S_IFDIR | 0o755, flags: flagImplied})
	r.t.dirs = append(r.t.dirs, directory{})

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
	if err := r.setDirTimes(); err != nil {
		return nil, err
	}
	r.t.Blocks, r.t.sums = r.out.blocks, slices.Clone(r.out.sums)
	r.t.finish()
	return r.t, nil
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
			return fmt.Errorf("read entry %d: %w", r.entries+1, r.src.class(err))
		}
		if err := r.entry(ctx, hdr, tr); err != nil {
			return fmt.Errorf("entry %d %q: %w", r.entries, hdr.Name, err)
		}
	}
}

// drain reads what follows the archive's end, so that whoever hashes the stream sees all of it.
func (r *reader) drain(ctx context.Context, in io.Reader) error {
	left := r.limits.MaxBytes - r.bytes
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
	return overLimit("bytes", r.limits.MaxBytes)
}

// count charges an entry or implied directory whose strings have the given length.
func (r *reader) count(metadata int) error {
	if r.entries++; r.entries > r.limits.MaxEntries {
		return overLimit("entries", r.limits.MaxEntries)
	}
	if r.metadata += int64(metadata); r.metadata > r.limits.MaxMetadataBytes {
		return overLimit("bytes of names and attributes", r.limits.MaxMetadataBytes)
	}
	return nil
}

func (r *reader) entry(ctx context.Context, hdr *tar.Header, content io.Reader) error {
	if err := r.count(len(hdr.Name) + len(hdr.Linkname)); err != nil {
		return err
	}
	if r.bytes += hdr.Size; hdr.Size < 0 || r.bytes < 0 || r.bytes > r.limits.MaxBytes {
		return overLimit("bytes", r.limits.MaxBytes)
	}
	name := path.Clean(hdr.Name)
	dir, base := path.Split(name)
	if base == "" || base == "." || base == ".." {
		return nil // the root itself, which containerd leaves alone
	}
	parent, err := r.parentOf(dir)
	if err != nil {
		return err
	}
	if r.depth+len(base) > maxPath {
		return invalid("path is longer than %d bytes", maxPath)
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return r.whiteout(parent, base, hdr)
	}
	if len(base) > maxName {
		return invalid("name is longer than %d bytes", maxName)
	}
	existing := r.t.lookup(parent, base)
	if existing != none && (hdr.Typeflag != tar.TypeDir || !r.t.inodes[existing].is(unix.S_IFDIR)) {
		r.set(parent, base, none)
		existing = none
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	n, err := r.create(ctx, parent, existing, hdr, content)
	if err != nil {
		return err
	}
	if existing == none {
		r.set(parent, base, n)
	}
	if err := r.attributes(n, hdr); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeDir {
		in := &r.t.inodes[n]
		r.dirTimes = append(r.dirTimes, dirTime{name: r.names.keep(name), sec: in.mtimeSec, nsec: in.mtimeNsec})
	}
	return nil
}

// parentOf finds the directory that an entry's name leads to, and makes it if it is not there.
func (r *reader) parentOf(dir string) (Number, error) {
	if dir == "" || dir == "/" {
		r.parentPath, r.parent, r.depth = dir, Root, 0
		return Root, nil
	}
	if dir == r.parentPath {
		return r.parent, nil
	}
	resolved, err := r.resolve(dir)
	if err != nil {
		return none, err
	}
	if len(resolved) > maxPath {
		return none, invalid("path is longer than %d bytes", maxPath)
	}
	at := Root
	for c := range strings.SplitSeq(resolved[1:], "/") {
		if c == "" {
			continue // resolved is "/"
		}
		if !r.t.inodes[at].is(unix.S_IFDIR) {
			return none, errParent(resolved)
		}
		next := r.t.lookup(at, c)
		if next == none {
			if next, err = r.imply(at, c); err != nil {
				return none, err
			}
		}
		at = next
	}
	if !r.t.inodes[at].is(unix.S_IFDIR) {
		return none, errParent(resolved)
	}
	r.parentPath, r.parent, r.depth = dir, at, len(resolved)
	return at, nil
}

func errParent(p string) error {
	return invalid("%q: %w", p, errNotDirectory)
}

func (r *reader) imply(parent Number, name string) (Number, error) {
	if len(name) > maxName {
		return none, invalid("name is longer than %d bytes", maxName)
	}
	if err := r.count(len(name)); err != nil {
		return none, err
	}
	n := r.add(parent, unix.S_IFDIR|0o755)
	r.t.inodes[n].flags |= flagImplied
	r.chmod(n, 0o755)
	r.set(parent, name, n)
	return n, nil
}

// whiteout handles every name that begins with .wh.; containerd takes all but the opaque marker, AUFS's own files
// included, for the deletion of what follows the prefix.
func (r *reader) whiteout(parent Number, base string, hdr *tar.Header) error {
	if base == opaqueMarker {
		return r.setXattr(parent, Xattr{Name: "trusted.overlay.opaque", Value: "y"})
	}
	victim := base[len(whiteoutPrefix):]
	if victim == "" || victim == "." || victim == ".." || len(victim) > maxName {
		return invalid("whiteout of an impossible name")
	}
	if r.t.lookup(parent, victim) != none {
		return invalid("whiteout of a name that the layer has too")
	}
	n := r.add(parent, unix.S_IFCHR)
	r.set(parent, victim, n)
	r.chown(n, hdr)
	return nil
}

// attributes does what containerd does to every entry in its order: owner, extended attributes, permissions, time.
func (r *reader) attributes(n Number, hdr *tar.Header) error {
	r.chown(n, hdr)
	if err := r.archiveXattrs(n, hdr.PAXRecords); err != nil {
		return err
	}
	if !r.t.inodes[n].is(unix.S_IFLNK) {
		r.chmod(n, uint16(hdr.Mode&0o7777))
	}
	r.t.inodes[n].mtimeSec, r.t.inodes[n].mtimeNsec = boundTime(hdr.ModTime)
	return nil
}

// chown sets the owner as chown(2) does: the numbers have 32 bits, the highest of them means "leave it", and a file
// that is no directory loses its capabilities.
func (r *reader) chown(n Number, hdr *tar.Header) {
	in := &r.t.inodes[n]
	if uid := uint32(hdr.Uid); uid != math.MaxUint32 {
		in.uid = uid
	}
	if gid := uint32(hdr.Gid); gid != math.MaxUint32 {
		in.gid = gid
	}
	if !in.is(unix.S_IFDIR) && in.xattrs != 0 {
		r.removeXattr(n, xattrCapability)
	}
}

func (r *reader) chmod(n Number, perm uint16) {
	in := &r.t.inodes[n]
	in.mode = in.mode&unix.S_IFMT | perm
	r.maskACL(n, perm)
}

// boundTime gives times that containerd does not take as the epoch: those before it, and those that do not fit a signed
// 64-bit number of nanoseconds.
func boundTime(t time.Time) (sec int64, nsec uint32) {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0, 0
	}
	return t.Unix(), uint32(t.Nanosecond())
}

// setDirTimes sets directory times once more by name after the last entry, as containerd does: a name may by then mean
// something else.
func (r *reader) setDirTimes() error {
	for _, d := range r.dirTimes {
		resolved, err := r.resolve(d.name)
		if err != nil {
			return fmt.Errorf("set time of directory %q: %w", d.name, err)
		}
		n, err := r.lstat(resolved)
		if err != nil {
			return fmt.Errorf("set time of directory %q: %w", d.name, err)
		}
		if n == none {
			return invalid("directory %q was removed by a later entry of the layer", d.name)
		}
		in := &r.t.inodes[n]
		in.mtimeSec, in.mtimeNsec = d.sec, d.nsec
	}
	r.dirTimes = nil
	return nil
}
