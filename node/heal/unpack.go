package heal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// unpack writes the layer's files as containerd's unpacker does. It succeeds only if the blob is the one that the
// manifest names, the layer is the one that was asked for, and all of it has reached the disk.
func unpack(ctx context.Context, blob io.Reader, want ocispec.Descriptor, l Layer) error {
	blobVerifier, layerVerifier := want.Digest.Verifier(), l.DiffID.Verifier()
	compressed := io.TeeReader(blob, blobVerifier)
	plain, err := compression.DecompressStream(compressed)
	if err != nil {
		return fmt.Errorf("decompress blob %s: %w", want.Digest, err)
	}
	err = apply(ctx, io.TeeReader(plain, layerVerifier), l)
	err = errors.Join(err, plain.Close())
	if err == nil {
		// Bytes after the end of the archive belong to the blob too.
		_, err = io.Copy(io.Discard, compressed)
	}
	switch {
	case err != nil:
		return fmt.Errorf("unpack blob %s: %w", want.Digest, err)
	case !blobVerifier.Verified():
		return fmt.Errorf("unpack blob %s: its bytes are others than its digest says: %w", want.Digest, errdefs.ErrDataLoss)
	case !layerVerifier.Verified():
		return fmt.Errorf("unpack blob %s: it does not hold layer %s: %w", want.Digest, l.DiffID, errdefs.ErrDataLoss)
	}
	return nil
}

func apply(ctx context.Context, r io.Reader, l Layer) error {
	// The lowest layer is unpacked into a plain directory, where a whiteout removes what came before it; the others
	// into the upper directory of an overlay mount (containerd's core/diff/apply/apply_linux.go).
	var opts []archive.ApplyOpt
	if len(l.Parents) > 0 {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(l.Parents))
	}
	if _, err := archive.Apply(ctx, l.Dir, r, opts...); err != nil {
		return err //nolint:wrapcheck // wrapped by the caller
	}
	// The digest covers the padding too.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("read to the end: %w", err)
	}
	return syncFileSystem(l.Dir)
}

// syncFileSystem returns when everything written has reached the disk, like sync_fs of containerd's diff service.
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync layer: %w", err)
	}
	err = unix.Syncfs(int(f.Fd()))
	if err != nil {
		err = fmt.Errorf("sync layer: %w", err)
	}
	return errors.Join(err, f.Close())
}

// empty removes all that is in a directory.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty directory: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("empty directory: %w", err)
		}
	}
	return nil
}
