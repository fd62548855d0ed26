package snapshotter

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// LayerSource knows which unpacked layers are ready on attached layer disks, and holds the disks of those in use.
// Implementations are safe for concurrent use.
type LayerSource interface {
	// Acquire finds an unpacked layer and holds its disk for holder until Release. Acquiring again for the same holder
	// is the same as acquiring once. A layer that no disk can serve is errdefs.ErrNotFound, whose text says why; the
	// caller then goes on without it, as it does on every other error.
	Acquire(ctx context.Context, holder string, layer LayerRequest) (HeldLayer, error)
	// Release gives up what holder holds; a holder that holds nothing is no error. It does not wait for a disk to be
	// detached.
	Release(ctx context.Context, holder string) error
}

// LayerRequest names a layer in up to three ways. ChainID is always known in the sequential protocol; the others depend
// on the version of containerd and its configuration, and are empty if unknown.
type LayerRequest struct {
	ChainID digest.Digest
	// ParentChainID is the chain the layer goes on top of, empty for the lowest layer and if unknown.
	ParentChainID digest.Digest
	DiffID        digest.Digest
	Blob          digest.Digest
	// ImageRef is the reference being pulled, for choosing and explaining only: it never selects bytes.
	ImageRef string
}

// HeldLayer is a layer directory that stays mounted until its holder releases it.
type HeldLayer struct {
	// Dir is the absolute path of the layer's tree, free of symbolic links.
	Dir string
	// DiskUUID and LayerNumber say which layer of which disk it is, so that Dir can be found again after a restart.
	DiskUUID    string
	LayerNumber int
	// BlobSize is the number of compressed bytes the registry need not send; 0 if unknown.
	BlobSize int64
}
