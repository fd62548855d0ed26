package builder

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifestBytes bounds manifests, image indexes and configs: what registries accept at most, and what fits the
// index of a disk.
const maxManifestBytes = 8 << 20

// ErrMismatch says that content is not what its digest, its size or its diff ID says.
var ErrMismatch = fmt.Errorf("content does not match: %w", errdefs.ErrDataLoss)

// blobReader streams one blob, resumes a broken connection where it ended, and at the end checks digest and size.
// Its data must not be trusted before that check.
type blobReader struct {
	desc ocispec.Descriptor
	// open starts at an offset; pause waits before the n-th attempt without progress.
	open  func(offset int64) (io.ReadCloser, error)
	pause func(n int) error
	// retry says whether to try again after n failures in a row.
	retry func(err error, n int) bool
	// progress is called for every read.
	progress func(n int)

	body   io.ReadCloser
	hash   hash.Hash
	offset int64
	// failures in a row since the last byte.
	failures int
	// end is the result of the whole, once known.
	end error
}

func newBlobReader(ctx context.Context, src source, desc ocispec.Descriptor, retry retryPolicy, progress func(int)) (*blobReader, error) {
	h, err := newHash(desc.Digest)
	if err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(int) {}
	}
	return &blobReader{
		desc: desc, hash: h, retry: retry.again, progress: progress,
		open:  func(offset int64) (io.ReadCloser, error) { return src.open(ctx, desc, offset) },
		pause: func(n int) error { return retry.wait(ctx, n) },
	}, nil
}

// newHash gives the hash function of a digest.
func newHash(d digest.Digest) (hash.Hash, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	switch d.Algorithm() {
	case digest.SHA256:
		return sha256.New(), nil
	case digest.SHA384:
		return sha512.New384(), nil
	case digest.SHA512:
		return sha512.New(), nil
	}
	return nil, fmt.Errorf("digest %q: unknown algorithm: %w", d, errdefs.ErrNotImplemented)
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.end != nil {
		return 0, b.end
	}
	for {
		n, err := b.readOnce(p)
		if n > 0 {
			b.failures = 0
			b.hash.Write(p[:n])
			b.offset += int64(n)
			b.progress(n)
			if b.offset > b.desc.Size {
				b.end = fmt.Errorf("blob %s is larger than the %d bytes of its manifest: %w", b.desc.Digest, b.desc.Size, ErrMismatch)
				return 0, b.end
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			b.end = b.verdict()
			return n, b.end
		case err == nil && n > 0:
			return n, nil
		case err == nil:
			continue
		}
		if err := b.again(err); err != nil {
			b.end = err
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (b *blobReader) readOnce(p []byte) (int, error) {
	if b.body == nil {
		if b.offset == b.desc.Size && b.offset > 0 {
			return 0, io.EOF // broken after the last byte
		}
		body, err := b.open(b.offset)
		if err != nil {
			return 0, err
		}
		b.body = body
	}
	return b.body.Read(p)
}

// again prepares another attempt, if there is reason to hope.
func (b *blobReader) again(err error) error {
	if b.body != nil {
		_ = b.body.Close() // it is broken already
		b.body = nil
	}
	b.failures++
	if !b.retry(err, b.failures) {
		return fmt.Errorf("fetch blob %s at byte %d of %d: %w", b.desc.Digest, b.offset, b.desc.Size, err)
	}
	if waitErr := b.pause(b.failures); waitErr != nil {
		return errors.Join(waitErr, err)
	}
	return nil
}

func (b *blobReader) verdict() error {
	got := digest.NewDigest(b.desc.Digest.Algorithm(), b.hash)
	if b.offset != b.desc.Size {
		return fmt.Errorf("blob %s has %d bytes (digest %s), its manifest says %d: %w", b.desc.Digest, b.offset, got, b.desc.Size, ErrMismatch)
	}
	if got != b.desc.Digest {
		return fmt.Errorf("blob %s has another digest: %s: %w", b.desc.Digest, got, ErrMismatch)
	}
	return io.EOF
}

// finish reads what a decompressor left over and gives the verdict on the whole: nil or the error.
func (b *blobReader) finish() error {
	if b.end == nil {
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{b}) // it is b.end
	}
	if errors.Is(b.end, io.EOF) {
		return nil
	}
	return b.end
}

// Close ends the connection.
func (b *blobReader) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}

// fetchAll gets a small piece of content, verified.
func fetchAll(ctx context.Context, src source, desc ocispec.Descriptor, retry retryPolicy) ([]byte, error) {
	if desc.Size < 0 || desc.Size > maxManifestBytes {
		return nil, fmt.Errorf("%s %s has %d bytes, at most %d are allowed: %w", desc.MediaType, desc.Digest, desc.Size, maxManifestBytes, errdefs.ErrInvalidArgument)
	}
	b, err := newBlobReader(ctx, src, desc, retry, nil)
	if err != nil {
		return nil, err
	}
	all, err := io.ReadAll(b)
	return all, errors.Join(err, b.Close())
}
