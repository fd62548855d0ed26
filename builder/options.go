package builder

import (
	"fmt"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/tree"
	"berth.dev/berth/readahead/accesslist"
)

// Options of one build.
type Options struct {
	// Images to put on the disk; their order decides the order of the layers there: "REFERENCE",
	// "[NAME=]oci:DIR[:REF]" for an OCI image layout, "[NAME=]docker-archive:FILE[:REF]" for what "docker save" writes.
	Images []string
	// Platforms of each image; empty means the platform of this machine.
	Platforms []ocispec.Platform
	// RegistryOnly treats every image as a registry reference, whatever its form, because others chose it.
	RegistryOnly bool
	Registry     RegistryOptions
	Output       Output
	// AccessLists are access lists of images, recorded by "berth record": the files in them are placed together on the
	// disk, in the order of the lists. Files of other layers are left out. It needs EROFS.
	AccessLists []*accesslist.List
	// Created is the time in the index; zero is the newest creation time of the images.
	Created time.Time
	// Parallel is the number of layers in work at once; 0 is half the processors, from 2 to 4: each layer keeps
	// about two busy, and what waits for its turn is written twice.
	Parallel int
	// Limits of one layer; zero fields are the defaults of package tree.
	Limits tree.Limits
	// Progress, if not nil, receives one event at a time. It must not block for long.
	Progress func(Event)

	planOnly bool
	// retry and gzipProgram are varied by tests.
	retry       *retryPolicy
	gzipProgram *string
}

// Output says where the disk goes.
type Output struct {
	// Path of a file that is made, or of a block device.
	Path string
	// Reuse adds to the layer disk that Path, a block device or a file, holds already: layers that it has are neither
	// fetched nor written. It has to be an EROFS disk, otherwise the error is ErrBase. If the build fails after it has
	// begun to write, the old content is lost, so Path should be a copy.
	Reuse bool
	// TakeFrom are layer disks, block devices or files, that layers are copied from instead of being fetched; of a
	// layer that several of them have, that of the first. They are only read. They have to be EROFS disks, otherwise
	// the error is ErrBase.
	TakeFrom []string
	// Force replaces an existing file or the content of a device that is not blank.
	Force bool
	// SizeBytes limits the disk and is the size of the file; 0 makes it as large as its content, or allows all of the
	// device. It is a multiple of 4096.
	SizeBytes int64
	// FileSystem is layerdisk.FileSystemEROFS, also if empty, or layerdisk.FileSystemExt4, which needs root and a loop
	// device.
	FileSystem string
	// TempDir is for spool files; empty is the directory of the file, or os.TempDir for a device.
	TempDir string
}

// maxParallel keeps the number of connections to a registry civil.
const maxParallel = 64

func (o *Options) complete() error {
	if len(o.Images) == 0 {
		return fmt.Errorf("no images to build a disk from: %w", errdefs.ErrInvalidArgument)
	}
	if o.Output.Path == "" && !o.planOnly {
		return fmt.Errorf("no output path: %w", errdefs.ErrInvalidArgument)
	}
	if o.Output.SizeBytes < 0 || o.Output.SizeBytes%blockBytes != 0 {
		return fmt.Errorf("output size %d is not a multiple of %d bytes: %w", o.Output.SizeBytes, blockBytes, errdefs.ErrInvalidArgument)
	}
	if o.Output.Reuse && (o.Output.Force || o.Output.FileSystem == layerdisk.FileSystemExt4) {
		return fmt.Errorf("output is to be added to: that excludes replacing it and file system %s: %w", layerdisk.FileSystemExt4, errdefs.ErrInvalidArgument)
	}
	if len(o.Output.TakeFrom) > 0 && o.Output.FileSystem == layerdisk.FileSystemExt4 {
		return fmt.Errorf("layers are to be taken from other disks: file system %s has to be made from nothing: %w", layerdisk.FileSystemExt4, errdefs.ErrInvalidArgument)
	}
	switch o.Output.FileSystem {
	case "":
		o.Output.FileSystem = layerdisk.FileSystemEROFS
	case layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4:
	default:
		return fmt.Errorf("file system %q is neither %s nor %s: %w", o.Output.FileSystem, layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4, errdefs.ErrInvalidArgument)
	}
	if len(o.AccessLists) > 0 && o.Output.FileSystem != layerdisk.FileSystemEROFS {
		return fmt.Errorf("only file system %s has its files placed by access lists: %w", layerdisk.FileSystemEROFS, errdefs.ErrInvalidArgument)
	}
	if err := checkAccessLists(o.AccessLists); err != nil {
		return err
	}
	if o.Parallel < 0 || o.Parallel > maxParallel {
		return fmt.Errorf("%d layers in parallel, allowed are 1 to %d: %w", o.Parallel, maxParallel, errdefs.ErrInvalidArgument)
	}
	if o.Parallel == 0 {
		o.Parallel = min(max(runtime.GOMAXPROCS(0)/2, 2), 4)
	}
	if len(o.Platforms) == 0 {
		o.Platforms = []ocispec.Platform{platforms.DefaultSpec()}
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	return nil
}

// Result is what a build made.
type Result struct {
	Identity   layerdisk.Identity `json:"identity"`
	FileSystem string             `json:"file_system"`
	Images     int                `json:"images"`
	// Layers on the disk, of which SharedLayers belong to more than one image; LayerUses counts each once for each
	// image.
	Layers       int `json:"layers"`
	SharedLayers int `json:"shared_layers"`
	LayerUses    int `json:"layer_uses"`
	// FetchedBytes of blobs, UnpackedBytes of files and Inodes are sums over the layers.
	FetchedBytes  int64 `json:"fetched_bytes"`
	UnpackedBytes int64 `json:"unpacked_bytes"`
	Inodes        int64 `json:"inodes"`
	// ReusedLayers were on the output before or on disks of Output.TakeFrom; ReusedBytes are their part of
	// UnpackedBytes.
	ReusedLayers int   `json:"reused_layers"`
	ReusedBytes  int64 `json:"reused_bytes"`
	// TakenFrom says what came from each disk of Output.TakeFrom, in that order.
	TakenFrom []Taken `json:"taken_from,omitempty"`
	// PlacedFiles lie together because of Options.AccessLists, and are PlacedBytes of the disk.
	PlacedFiles int   `json:"placed_files,omitempty"`
	PlacedBytes int64 `json:"placed_bytes,omitempty"`
	// DiskBytes is the size of the whole disk, WrittenBytes the part that was written.
	DiskBytes    int64 `json:"disk_bytes"`
	WrittenBytes int64 `json:"written_bytes"`
	// Duration of the build in nanoseconds.
	Duration time.Duration `json:"duration_nanoseconds"`
}

// Taken is what was copied from another disk.
type Taken struct {
	// Disk as it was given in Output.TakeFrom.
	Disk          string `json:"disk"`
	Layers        int    `json:"layers"`
	UnpackedBytes int64  `json:"unpacked_bytes"`
}

// EventKind is the kind of an Event.
type EventKind string

// Kinds of events.
const (
	// EventResolved: an image was found. Image is set.
	EventResolved EventKind = "image-resolved"
	// EventPlanned: all images are known. Plan is set.
	EventPlanned EventKind = "planned"
	// EventLayerStarted, EventLayerProgress (at most ten in a second for each layer) and EventLayerDone: Layer is set.
	EventLayerStarted  EventKind = "layer-started"
	EventLayerProgress EventKind = "layer-progress"
	EventLayerDone     EventKind = "layer-done"
	// EventFinishing: all layers are unpacked; metadata and index are being written.
	EventFinishing EventKind = "finishing"
)

// Event is one step of a build.
type Event struct {
	Kind  EventKind   `json:"event"`
	Image *ImageEvent `json:"image,omitempty"`
	Plan  *PlanEvent  `json:"plan,omitempty"`
	Layer *LayerEvent `json:"layer,omitempty"`
}

// ImageEvent is one image.
type ImageEvent struct {
	Reference string        `json:"reference"`
	Platform  string        `json:"platform"`
	Manifest  digest.Digest `json:"manifest"`
	Layers    int           `json:"layers"`
}

// PlanEvent is the work ahead.
type PlanEvent struct {
	Images    int   `json:"images"`
	Layers    int   `json:"layers"`
	BlobBytes int64 `json:"blob_bytes"`
}

// Contents is what images consist of, as their manifests and configs say.
type Contents struct {
	Images []ImageEvent `json:"images"`
	// Layers that differ, in the order in which they would lie on the disk.
	Layers []ContentsLayer `json:"layers"`
	// Chains are the chain IDs of all stacks of layers, each once.
	Chains []digest.Digest `json:"chains"`
}

// ContentsLayer is one layer.
type ContentsLayer struct {
	DiffID    digest.Digest `json:"diff_id"`
	Blob      digest.Digest `json:"blob"`
	BlobBytes int64         `json:"blob_bytes"`
}

// LayerEvent is the state of one layer.
type LayerEvent struct {
	Number int           `json:"number"`
	DiffID digest.Digest `json:"diff_id"`
	Blob   digest.Digest `json:"blob"`
	// Image is the reference of the first one with the layer.
	Image string `json:"image"`
	// BlobBytes is the size of the blob, FetchedBytes what has come of it.
	BlobBytes    int64 `json:"blob_bytes"`
	FetchedBytes int64 `json:"fetched_bytes"`
	// UnpackedBytes and Inodes are known when the layer is done: what its archive names twice is counted twice.
	UnpackedBytes int64 `json:"unpacked_bytes,omitempty"`
	Inodes        int64 `json:"inodes,omitempty"`
}
