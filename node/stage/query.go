package stage

import (
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// Held is a layer's directory. If it came from Acquire, it stays mounted until the holder releases it.
type Held struct {
	// Dir is the absolute path of the layer's tree, free of symbolic links.
	Dir string
	// DiskUUID and LayerNumber are what LayerDir and Reconcile take after a restart.
	DiskUUID    string
	DiskName    string
	LayerNumber int
	// DiffID is the layer's, as the disk's proved index has it, however the layer was found.
	DiffID digest.Digest
	// BlobSize is the size of the blob asked for, or of the first one the index knows; 0 if it knows none.
	BlobSize  int64
	MatchedBy layerdisk.Match
}

// Hold is one layer that a holder uses, as the holder remembers it.
type Hold struct {
	Holder      string
	DiskUUID    string
	LayerNumber int
}

// MissReason is why no disk serves a layer. The set of values is fixed, so that it can be a metric's label.
type MissReason string

// Values of MissReason.
const (
	// MissNoDisk: no disk serves anything.
	MissNoDisk MissReason = "no-disk"
	// MissNotOnDisk: disks serve, none of them has the layer.
	MissNotOnDisk MissReason = "not-on-disk"
	// MissNotReady: disks were still on their way when the wait for them ended, and those that serve lack the layer.
	MissNotReady MissReason = "disk-not-ready"
	// MissDraining: the disk that has the layer is being drained.
	MissDraining MissReason = "disk-draining"
	// MissFailed: the disk that has the layer failed its check.
	MissFailed MissReason = "disk-failed"
	// MissContradiction: the digests of the query belong to different layers.
	MissContradiction MissReason = "contradiction"
)

// MissError is the error of Acquire and Locate when no disk serves the layer. Its class is errdefs.ErrNotFound and its
// text says why.
type MissError struct {
	Reason MissReason
	text   string
}

// Error says why, in words for people.
func (e *MissError) Error() string { return e.text }

// Unwrap gives the class.
func (e *MissError) Unwrap() error { return errdefs.ErrNotFound }
