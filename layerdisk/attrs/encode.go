package attrs

import (
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/zeebo/blake3"
)

// The first line of every listing: what it is, and the version of its grammar.
const listingHeader = "berth-attrs 1\n"

// DigestPrefix begins every digest of a listing.
const DigestPrefix = "blake3:"

// Encoder writes a listing, entry by entry. It is not safe for concurrent use.
type Encoder struct {
	w    io.Writer
	hash hash.Hash
	line []byte
	last string
	any  bool
}

// NewEncoder writes a listing to w, which may be nil if only the digest is wanted.
func NewEncoder(w io.Writer) *Encoder {
	if w == nil {
		w = io.Discard
	}
	return &Encoder{w: w, hash: blake3.New()}
}

// Encode writes one entry. Entries come in the order of their paths, bytewise; an entry that is out of order or cannot
// be is errdefs.ErrInvalidArgument.
func (e *Encoder) Encode(entry Entry) error {
	if err := entry.check(); err != nil {
		return fmt.Errorf("encode entry %q: %w: %w", Escape(entry.Path), err, errdefs.ErrInvalidArgument)
	}
	if e.any && entry.Path <= e.last {
		return fmt.Errorf("encode entry %q: it comes after %q, entries must be sorted by path: %w",
			Escape(entry.Path), Escape(e.last), errdefs.ErrInvalidArgument)
	}
	e.line = e.line[:0]
	if !e.any {
		e.line = append(e.line, listingHeader...)
	}
	e.any, e.last = true, entry.Path
	e.line = appendEntry(e.line, &entry)
	return e.write(e.line)
}

func (e *Encoder) write(b []byte) error {
	// A hash never fails to write.
	_, _ = e.hash.Write(b)
	if _, err := e.w.Write(b); err != nil {
		return fmt.Errorf("write listing: %w", err)
	}
	return nil
}

// Close ends the listing and returns its digest. It does not close the writer.
func (e *Encoder) Close() (string, error) {
	if !e.any {
		e.any = true
		if err := e.write([]byte(listingHeader)); err != nil {
			return "", err
		}
	}
	return DigestPrefix + hex.EncodeToString(e.hash.Sum(nil)), nil
}

// Digest of the listing of entries, "blake3:" and 64 hex digits. Errors are those of Encoder.Encode.
func Digest(entries iter.Seq[Entry]) (string, error) {
	return encodeAll(nil, entries)
}

func encodeAll(w io.Writer, entries iter.Seq[Entry]) (string, error) {
	enc := NewEncoder(w)
	for entry := range entries {
		if err := enc.Encode(entry); err != nil {
			return "", err
		}
	}
	return enc.Close()
}

// appendEntry writes the line of a valid entry. The fields every entry has come first, in order and without names; the
// others follow in the order written here.
func appendEntry(b []byte, e *Entry) []byte {
	b = appendEscaped(b, e.Path)
	b = append(b, ' ', byte(e.Type), ' ')
	b = strconv.AppendUint(b, uint64(e.Mode), 8)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(e.UID), 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(e.GID), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, e.MtimeSec, 10)
	b = append(b, '.')
	b = appendNsec(b, e.MtimeNsec)
	switch e.Type {
	case Regular:
		b = append(b, " size="...)
		b = strconv.AppendInt(b, e.Size, 10)
		if e.HardLink == "" {
			b = append(b, " content="...)
			b = hex.AppendEncode(b, e.Content[:])
		}
	case Symlink:
		b = append(b, " target="...)
		b = appendEscaped(b, e.Target)
	case CharDev, BlockDev:
		b = append(b, " device="...)
		b = strconv.AppendUint(b, uint64(e.DevMajor), 10)
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(e.DevMinor), 10)
	case Directory, FIFO, Socket:
	}
	if e.HardLink != "" {
		b = append(b, " link="...)
		b = appendEscaped(b, e.HardLink)
	}
	if len(e.Xattrs) > 0 {
		for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
			if !Listed(name) {
				continue
			}
			b = append(b, " xattr:"...)
			b = appendEscaped(b, name)
			b = append(b, '=')
			b = appendEscaped(b, e.Xattrs[name])
		}
	}
	return append(b, '\n')
}

// appendNsec writes nine digits.
func appendNsec(b []byte, nsec uint32) []byte {
	var digits [9]byte
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = '0' + byte(nsec%10)
		nsec /= 10
	}
	return append(b, digits[:]...)
}

// Compare orders entries as a listing wants them.
func Compare(a, b Entry) int {
	return strings.Compare(a.Path, b.Path)
}
