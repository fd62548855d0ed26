package attrs

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/zeebo/blake3"
)

// maxLineBytes bounds the memory for one entry. The longest line, with MaxXattrsBytes all escaped to four bytes each,
// has a third of it.
const maxLineBytes = 16 << 20

// Decoder reads a listing that nobody vouches for, entry by entry. It takes only the canonical form, so that equal
// digests and equal entries are the same thing. It is not safe for concurrent use.
type Decoder struct {
	r        *bufio.Reader
	hash     hash.Hash
	line     []byte
	again    []byte
	last     string
	any      bool
	finished bool
}

// NewDecoder reads a listing from r to its end.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: bufio.NewReaderSize(r, 64<<10), hash: blake3.New()}
}

// Next gives the next entry, io.EOF after the last. A listing that is not canonical or cut short is
// errdefs.ErrDataLoss; errors of the reader are passed on.
func (d *Decoder) Next() (Entry, error) {
	if !d.any {
		d.any = true
		if err := d.readLine(); err != nil && !errors.Is(err, io.EOF) {
			return Entry{}, err
		}
		if string(d.line) != listingHeader {
			return Entry{}, fmt.Errorf("decode listing: it does not begin with %q: %w", listingHeader, errdefs.ErrDataLoss)
		}
	}
	if err := d.readLine(); err != nil {
		d.finished = errors.Is(err, io.EOF)
		return Entry{}, err
	}
	entry, err := parseEntry(d.line[:len(d.line)-1])
	if err == nil {
		err = d.checkCanonical(&entry)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("decode listing: entry after %q: %w: %w", Escape(d.last), err, errdefs.ErrDataLoss)
	}
	d.last = entry.Path
	return entry, nil
}

// Digest of the listing, once Next has answered io.EOF.
func (d *Decoder) Digest() (string, error) {
	if !d.finished {
		return "", fmt.Errorf("digest listing: it has not been read to its end: %w", errdefs.ErrFailedPrecondition)
	}
	return DigestPrefix + hex.EncodeToString(d.hash.Sum(nil)), nil
}

// readLine fills d.line up to and with the next newline.
func (d *Decoder) readLine() error {
	d.line = d.line[:0]
	for {
		part, err := d.r.ReadSlice('\n')
		d.line = append(d.line, part...)
		if len(d.line) > maxLineBytes {
			return fmt.Errorf("decode listing: line of more than %d bytes: %w", maxLineBytes, errdefs.ErrDataLoss)
		}
		switch {
		case err == nil:
			_, _ = d.hash.Write(d.line)
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(d.line) > 0:
			return fmt.Errorf("decode listing: it ends within a line: %w", errdefs.ErrDataLoss)
		case errors.Is(err, io.EOF):
			return io.EOF
		default:
			return fmt.Errorf("read listing: %w", err)
		}
	}
}

// checkCanonical writes the entry again and wants the same bytes, which catches every other spelling at once.
func (d *Decoder) checkCanonical(entry *Entry) error {
	if err := entry.check(); err != nil {
		return err
	}
	if d.last != "" && entry.Path <= d.last {
		return fmt.Errorf("path %q is not sorted", Escape(entry.Path))
	}
	d.again = appendEntry(d.again[:0], entry)
	if !bytes.Equal(d.again, d.line) {
		return fmt.Errorf("line of %q is not in canonical form", Escape(entry.Path))
	}
	return nil
}

func parseEntry(line []byte) (Entry, error) {
	const fixed = 6
	fields := bytes.Split(line, []byte{' '})
	if len(fields) < fixed {
		return Entry{}, fmt.Errorf("%d fields, want at least %d", len(fields), fixed)
	}
	var e Entry
	var err error
	if e.Path, err = unescape(fields[0]); err != nil {
		return Entry{}, fmt.Errorf("path: %w", err)
	}
	if len(fields[1]) != 1 {
		return Entry{}, errors.New("type is not one letter")
	}
	e.Type = FileType(fields[1][0])
	for _, f := range []struct {
		name string
		text []byte
		base int
		to   *uint32
	}{{"mode", fields[2], 8, &e.Mode}, {"uid", fields[3], 10, &e.UID}, {"gid", fields[4], 10, &e.GID}} {
		if *f.to, err = parseUint32(f.text, f.base); err != nil {
			return Entry{}, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	sec, nsec, _ := bytes.Cut(fields[5], []byte{'.'})
	if e.MtimeSec, err = strconv.ParseInt(string(sec), 10, 64); err != nil {
		return Entry{}, fmt.Errorf("mtime: %w", err)
	}
	if e.MtimeNsec, err = parseUint32(nsec, 10); err != nil {
		return Entry{}, fmt.Errorf("mtime: %w", err)
	}
	for _, f := range fields[fixed:] {
		if err := e.parseField(f); err != nil {
			return Entry{}, err
		}
	}
	if e.Type == Symlink {
		e.Size = int64(len(e.Target))
	}
	return e, nil
}

// parseField takes the fields with a name; which of them belong to the type is found out by writing the entry again.
func (e *Entry) parseField(f []byte) error {
	name, value, ok := bytes.Cut(f, []byte{'='})
	if !ok {
		return errors.New("field without a value")
	}
	var err error
	switch string(name) {
	case "size":
		e.Size, err = strconv.ParseInt(string(value), 10, 64)
	case "content":
		if len(value) != hex.EncodedLen(len(e.Content)) {
			return errors.New("content is not a hash of 32 bytes")
		}
		_, err = hex.Decode(e.Content[:], value)
	case "target":
		e.Target, err = unescape(value)
	case "link":
		e.HardLink, err = unescape(value)
	case "device":
		dev, minor, _ := bytes.Cut(value, []byte{':'})
		if e.DevMajor, err = parseUint32(dev, 10); err == nil {
			e.DevMinor, err = parseUint32(minor, 10)
		}
	default:
		return e.parseXattr(name, value)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (e *Entry) parseXattr(name, value []byte) error {
	escaped, ok := bytes.CutPrefix(name, []byte("xattr:"))
	if !ok {
		return fmt.Errorf("unknown field %.32q", name)
	}
	key, err := unescape(escaped)
	if err != nil {
		return fmt.Errorf("xattr name: %w", err)
	}
	v, err := unescape(value)
	if err != nil {
		return fmt.Errorf("xattr %s: %w", Escape(key), err)
	}
	if e.Xattrs == nil {
		e.Xattrs = make(map[string][]byte)
	}
	e.Xattrs[key] = []byte(v)
	return nil
}

func parseUint32(b []byte, base int) (uint32, error) {
	n, err := strconv.ParseUint(string(b), base, 32)
	return uint32(n), err
}
