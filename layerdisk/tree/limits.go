package tree

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Classes of errors that Read and Layer.On return, besides those of the reader, the writer and the context.
var (
	// ErrInvalid is the class of layers that containerd would not unpack either; it is an errdefs.ErrInvalidArgument.
	ErrInvalid = fmt.Errorf("layer is not valid: %w", errdefs.ErrInvalidArgument)
	// ErrLimit is the class of layers beyond Limits; it is an errdefs.ErrResourceExhausted.
	ErrLimit = fmt.Errorf("layer is over the limit: %w", errdefs.ErrResourceExhausted)
)

// Limits bound what one layer may cost. A zero field means the value of DefaultLimits.
type Limits struct {
	// MaxEntries bounds archive entries and implied directories together: a layer takes about 130 bytes plus the name
	// per entry, and each of its trees about 150 bytes plus the name.
	MaxEntries int64
	// MaxBytes bounds the sum of all file sizes as the archive states them, holes included, and whatever follows the
	// end of the archive.
	MaxBytes int64
	// MaxMetadataBytes bounds the sum of the lengths of names, link targets and extended attributes.
	MaxMetadataBytes int64
}

// DefaultLimits are far above any real layer (the largest public ones have about a million files and 100 GB) and keep a
// hostile one from taking more than about 2 GiB of memory.
func DefaultLimits() Limits {
	return Limits{MaxEntries: 4 << 20, MaxBytes: 1 << 40, MaxMetadataBytes: 512 << 20}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	if l.MaxEntries == 0 {
		l.MaxEntries = d.MaxEntries
	}
	if l.MaxBytes == 0 {
		l.MaxBytes = d.MaxBytes
	}
	if l.MaxMetadataBytes == 0 {
		l.MaxMetadataBytes = d.MaxMetadataBytes
	}
	return l
}

// Limits of the Linux kernel that every file system and mount shares.
const (
	maxName   = 255  // NAME_MAX
	maxPath   = 4095 // PATH_MAX without the NUL
	maxTarget = 4095
	maxXattr  = 65536 // XATTR_SIZE_MAX
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrInvalid)
}

func overLimit(what string, limit int64) error {
	return fmt.Errorf("more than %d %s; raise the limit if the layer is trusted: %w", limit, what, ErrLimit)
}

var errNotDirectory = errors.New("a parent is not a directory")
