package lifecycle

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/readahead/accesslist"
)

// Builder makes layer disks. Errors are NotFound for images that are not there, InvalidArgument and NotImplemented for
// those that cannot be used, Unauthenticated and PermissionDenied by the registry, TooSmallError, DataLoss for a base
// that is damaged. Their texts hold no secret.
type Builder interface {
	// Plan finds out what the images consist of, without fetching layers.
	Plan(ctx context.Context, req PlanRequest) (Plan, error)
	// Build writes the disk. When it returns, nothing of the build runs any more, whatever the outcome.
	Build(ctx context.Context, req BuildRequest) (BuildResult, error)
}

// PlanRequest says what would be built.
type PlanRequest struct {
	// Owner whose secrets may be used.
	Owner string
	Spec  imagesnapshot.Spec
}

// Plan is what the images consist of.
type Plan struct {
	// Layers that differ, in the order of the disk.
	Layers []PlannedLayer
	// Chains are all stacks of layers.
	Chains []digest.Digest
}

// PlannedLayer is one layer of a plan.
type PlannedLayer struct {
	DiffID    digest.Digest
	BlobBytes int64
}

// BuildRequest says what to build and where.
type BuildRequest struct {
	PlanRequest
	// Name of the image snapshot, for logs and names of processes.
	Name string
	// Device to write to. It is blank, or holds a layer disk to start from if Reuse says so.
	Device blockdev.Device
	Reuse  bool
	// Donors are disks to copy layers from. They are only read.
	Donors []Donor
	// AccessLists are access lists of images on the disk, see builder.Options.
	AccessLists []*accesslist.List
	// Progress may be called with how far the build is, in percent, from any goroutine but only one at a time.
	Progress func(percent int)
}

// Donor is a disk that layers are copied from.
type Donor struct {
	// Name of the image snapshot that it is a copy of.
	Name   string
	Device blockdev.Device
}

// BuildResult is what a build made.
type BuildResult struct {
	// Index is the encoded index, as read back from the disk.
	Index                                []byte
	DiskBytes, FetchedBytes, ReusedBytes int64
	// CopiedBytes are what of ReusedBytes came from each of the donors, in their order.
	CopiedBytes []int64
}

// TooSmallError says that a disk does not fit the volume. Its class is errdefs.ErrResourceExhausted.
type TooSmallError struct {
	// NeededBytes of volume.
	NeededBytes int64
	Err         error
}

func (e *TooSmallError) Error() string { return e.Err.Error() }

// Unwrap returns the class and the cause.
func (e *TooSmallError) Unwrap() []error { return []error{errdefs.ErrResourceExhausted, e.Err} }
