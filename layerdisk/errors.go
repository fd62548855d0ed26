package layerdisk

import (
	"github.com/containerd/errdefs"
)

// Errors of this package, for errors.Is. Each also has a class of containerd/errdefs, named in its comment. Errors of
// reading the device or file are passed on as they are.
var (
	// ErrNotLayerDisk says that there is no header where a layer disk has one: the device holds something else, or the
	// building of the disk never came to its end. Its class is errdefs.ErrInvalidArgument.
	ErrNotLayerDisk error = &classError{"not a berth layer disk", errdefs.ErrInvalidArgument}
	// ErrVersion says that the disk has a major version of the format that this reader does not know. Its class is
	// errdefs.ErrNotImplemented.
	ErrVersion error = &classError{"unknown layer disk format version", errdefs.ErrNotImplemented}
	// ErrCorrupt says that the disk contradicts itself or breaks a rule of the format. Its class is
	// errdefs.ErrDataLoss.
	ErrCorrupt error = &classError{"layer disk is corrupt", errdefs.ErrDataLoss}
	// ErrOtherDisk says that a disk is sound but not the expected one. Its class is errdefs.ErrFailedPrecondition.
	ErrOtherDisk error = &classError{"another layer disk than expected", errdefs.ErrFailedPrecondition}
)

// classError has a text of its own and belongs to an error class without repeating the class's text.
type classError struct {
	text  string
	class error
}

func (e *classError) Error() string { return e.text }

func (e *classError) Unwrap() error { return e.class }
