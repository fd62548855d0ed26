package snapshotter

import (
	"context"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
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
	// LayerDir is where a layer that is held lies now: an absolute path, free of symbolic links. It is asked for each
	// adopted layer of a container whenever that container's mounts are asked for, also after a restart, and
	// answers from memory or after a read of the disk. A disk that is not mounted or not to be trusted is
	// errdefs.ErrUnavailable, whose text names the disk and says what is wrong with it.
	LayerDir(ctx context.Context, diskUUID string, layerNumber int) (string, error)
}

// LayerRequest names a layer and the image that it is of. ChainID is always known; the other digests depend on the
// version of containerd and its configuration, and are empty if unknown. DiffID and ParentChainID are only ever set if
// they are proved to make up ChainID; Blob comes from whoever wrote the image and proves nothing by itself.
type LayerRequest struct {
	layerdisk.LayerName
	// ImageRef is the reference being pulled, for choosing and explaining only: it never selects bytes.
	ImageRef string
	// Manifest and Above describe the image being pulled further, likewise for choosing only: the digest of its
	// manifest, and the compressed layers that come on top of this one, the lowest first. Both may be empty, and Above
	// may be cut short.
	Manifest digest.Digest   `json:"-"`
	Above    []digest.Digest `json:"-"`
}

// HeldLayer is a layer directory that stays mounted until its holder releases it.
type HeldLayer struct {
	// Dir is the absolute path of the layer's tree, free of symbolic links.
	Dir string
	// DiskUUID and LayerNumber say which layer of which disk it is, so that Dir can be found again after a restart.
	DiskUUID    string
	LayerNumber int
	// DiffID is the digest of the uncompressed layer, as the disk's proved index has it. The snapshotter uses the layer
	// only if this and the chain below it make up the requested ChainID, however the layer was found.
	DiffID digest.Digest
	// MatchedBy says which of the request's digests found the layer.
	MatchedBy layerdisk.Match
	// BlobSize is the number of compressed bytes the registry need not send; 0 if unknown.
	BlobSize int64
}
