package layerdisk

import "github.com/opencontainers/go-digest"

// LayerName names a layer in up to three ways: by the stack that it completes, by its uncompressed bytes, and by a
// compressed form of them. A field that is not known is empty. It is the one name of a layer for everybody who asks a
// disk for one or chooses disks.
type LayerName struct {
	// ChainID of the stack of layers with this one on top.
	ChainID digest.Digest
	// ParentChainID is the chain ID of the stack below the layer. It is empty for the lowest layer too.
	ParentChainID digest.Digest
	// DiffID is the digest of the uncompressed layer.
	DiffID digest.Digest
	// Blob is the digest of a compressed form of the layer.
	Blob digest.Digest
}

// Match says by which of its digests a layer was found. The set of values is fixed, so that it can be a metric's label.
type Match string

// Values of Match.
const (
	// MatchChainID is a layer found by the stack that it completes.
	MatchChainID Match = "chain-id"
	// MatchDiffID is a layer found by its uncompressed digest, on a disk that has it in another stack.
	MatchDiffID Match = "diff-id"
	// MatchBlob is a layer found by its compressed digest.
	MatchBlob Match = "blob"
	// MatchSnapshot is a layer that another containerd namespace had adopted before: no disk was asked.
	MatchSnapshot Match = "snapshot"
)
