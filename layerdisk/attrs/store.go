package attrs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

// maxWindowBytes bounds the memory that a compressed listing can ask of its reader.
const maxWindowBytes = 8 << 20

// Store gives the listing of entries compressed with zstd, as a layer disk keeps it, and its digest, which is that of
// the uncompressed listing. Equal entries give equal bytes as long as the compressor stays the same.
func Store(entries iter.Seq[Entry]) (compressed []byte, digest string, err error) {
	var buf bytes.Buffer
	// One goroutine, because with more the cut between blocks depends on their timing.
	z, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, "", fmt.Errorf("compress listing: %w", err)
	}
	digest, err = encodeAll(z, entries)
	if err := errors.Join(err, z.Close()); err != nil {
		return nil, "", err
	}
	return buf.Bytes(), digest, nil
}

// Load reads a listing that Store made, from a reader that nobody vouches for, and returns its entries and its digest.
// It takes at most maxBytes of uncompressed listing. What is not a canonical listing or larger is errdefs.ErrDataLoss.
func Load(r io.Reader, maxBytes int64) (entries []Entry, digest string, err error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindowBytes))
	if err != nil {
		return nil, "", fmt.Errorf("decompress listing: %w", err)
	}
	defer z.Close()
	d := NewDecoder(&boundedReader{r: z, left: maxBytes})
	for {
		e, err := d.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, "", err
		}
		entries = append(entries, e)
	}
	if err := checkLinks(entries); err != nil {
		return nil, "", fmt.Errorf("decode listing: %w: %w", err, errdefs.ErrDataLoss)
	}
	digest, err = d.Digest()
	return entries, digest, err
}

// checkLinks wants each hard link to name the first entry of its inode and to have the inode's attributes.
func checkLinks(sorted []Entry) error {
	for i := range sorted {
		link := &sorted[i]
		if link.HardLink == "" {
			continue
		}
		at, ok := slices.BinarySearchFunc(sorted[:i], Entry{Path: link.HardLink}, Compare)
		if ok && sorted[at].HardLink == "" && sameInode(&sorted[at], link) {
			continue
		}
		return fmt.Errorf("entry %q is a hard link to %s, which is no entry of the same inode", Escape(link.Path), Escape(link.HardLink))
	}
	return nil
}

func sameInode(a, b *Entry) bool {
	return a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Size == b.Size &&
		a.MtimeSec == b.MtimeSec && a.MtimeNsec == b.MtimeNsec && a.Target == b.Target &&
		a.DevMajor == b.DevMajor && a.DevMinor == b.DevMinor && maps.EqualFunc(a.Xattrs, b.Xattrs, bytes.Equal)
}

// boundedReader fails where io.LimitReader would pretend that the listing ends, and gives errors of the decompressor
// their class.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return 0, fmt.Errorf("listing is longer than allowed: %w", errdefs.ErrDataLoss)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("decompress listing: %w: %w", err, errdefs.ErrDataLoss)
	}
	return n, err
}
