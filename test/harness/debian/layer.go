package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// layer is a gzip-compressed layer in the cache. Its digests are known, unlike those of a file.
type layer struct {
	path string
	meta meta
}

// meta is what is kept beside a blob.
type meta struct {
	Blob, DiffID  string
	Size, TarSize int64
}

var _ v1.Layer = (*layer)(nil)

// Digest of the blob.
func (l *layer) Digest() (v1.Hash, error) { return v1.NewHash(l.meta.Blob) }

// DiffID is the digest of the tar.
func (l *layer) DiffID() (v1.Hash, error) { return v1.NewHash(l.meta.DiffID) }

// Size of the blob in bytes.
func (l *layer) Size() (int64, error) { return l.meta.Size, nil }

// MediaType of the blob.
func (l *layer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

// Compressed is the blob.
func (l *layer) Compressed() (io.ReadCloser, error) { return os.Open(l.path) }

// Uncompressed is the tar.
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}

// open a layer that is complete in the cache; nil if it is not there.
func openLayer(dir, key string) (*layer, error) {
	b, err := os.ReadFile(filepath.Join(dir, key+".json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // the doc comment says so
	}
	if err != nil {
		return nil, fmt.Errorf("read layer %s: %w", key, err)
	}
	l := &layer{path: filepath.Join(dir, key+".tar.gz")}
	if err := json.Unmarshal(b, &l.meta); err != nil {
		return nil, fmt.Errorf("decode layer %s: %w", key, err)
	}
	return l, nil
}

// writeLayer stores what upper has over lower, the merged trees, as a layer. The description is written last, so that
// an interrupted layer is none.
func writeLayer(ctx context.Context, dir, key, lower, upper string) (*layer, error) {
	l := &layer{path: filepath.Join(dir, key+".tar.gz")}
	f, err := os.Create(l.path)
	if err != nil {
		return nil, fmt.Errorf("create layer: %w", err)
	}
	blob, diffID := newCounter(f), newCounter(nil)
	z, err := gzip.NewWriterLevel(blob, gzip.DefaultCompression)
	if err == nil {
		diffID.to = z
		err = errors.Join(archive.WriteDiff(ctx, diffID, lower, upper), z.Close())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	l.meta = meta{Blob: blob.digest(), DiffID: diffID.digest(), Size: blob.n, TarSize: diffID.n}
	b, err := json.Marshal(l.meta)
	if err != nil {
		return nil, fmt.Errorf("encode layer: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, key+".json"), b, 0o644); err != nil { //nolint:gosec // nothing secret
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return l, nil
}

// counter hashes and counts what passes.
type counter struct {
	to  io.Writer
	sum hash.Hash
	n   int64
}

func newCounter(to io.Writer) *counter { return &counter{to: to, sum: sha256.New()} }

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.to.Write(b)
	c.sum.Write(b[:n]) // a hash never fails
	c.n += int64(n)
	return n, err
}

func (c *counter) digest() string { return "sha256:" + hex.EncodeToString(c.sum.Sum(nil)) }

// extract a layer into an overlay's directory.
func (l *layer) extract(ctx context.Context, dir string) error {
	r, err := l.Uncompressed()
	if err != nil {
		return fmt.Errorf("open layer: %w", err)
	}
	defer r.Close()
	if _, err := archive.Apply(ctx, dir, r, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)); err != nil {
		return fmt.Errorf("extract layer: %w", err)
	}
	return nil
}

// overlay are the mounts of a stack of trees, lowest first, with upper on top to write to; without upper for reading.
func overlay(trees []string, upper, work string) []mount.Mount {
	if upper == "" && len(trees) == 1 {
		return []mount.Mount{{Type: "bind", Source: trees[0], Options: []string{"rbind", "ro"}}}
	}
	lower := ""
	for _, t := range trees {
		if lower != "" {
			t += ":"
		}
		lower = t + lower
	}
	options := []string{"lowerdir=" + lower}
	if upper != "" {
		options = append(options, "upperdir="+upper, "workdir="+work)
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}
