package builder

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"berth.dev/berth/builder/gunzip"
)

// compression of a layer's blob. It is detected from the first bytes, as in containerd, since media types often say
// less than they could, and the diff ID proves the result anyway.
type compression int

const (
	compressionNone compression = iota
	compressionGzip
	compressionZstd
)

const (
	magicBytes = 4
	// maxZstdWindow is what zstd itself makes without --long; larger windows are memory for a hostile frame.
	maxZstdWindow = 128 << 20
)

func detect(b []byte) compression {
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b, 0x08}): // RFC 1952
		return compressionGzip
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}): // RFC 8878, section 3.1.1
		return compressionZstd
	case len(b) >= 4 && b[0]&0xf0 == 0x50 && bytes.HasPrefix(b[1:], []byte{0x2a, 0x4d, 0x18}): // 3.1.2, skippable frame
		return compressionZstd
	}
	return compressionNone
}

// decompress gives the layer's tar. gzipProgram is the one for package gunzip.
func decompress(ctx context.Context, gzipProgram string, blob io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(blob, 64<<10)
	head, err := buffered.Peek(magicBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch detect(head) {
	case compressionGzip:
		return gunzip.NewReader(ctx, gzipProgram, buffered)
	case compressionZstd:
		r, err := zstd.NewReader(buffered, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, fmt.Errorf("decompress zstd: %w", err)
		}
		return r.IOReadCloser(), nil
	case compressionNone:
	}
	for name, magic := range map[string]string{"bzip2": "BZh", "xz": "\xfd7zX", "lz4": "\x04\x22\x4d\x18"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return nil, fmt.Errorf("layer is compressed with %s, only gzip, zstd and uncompressed tar are allowed in images: %w", name, errdefs.ErrNotImplemented)
		}
	}
	return io.NopCloser(buffered), nil
}
