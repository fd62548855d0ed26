// Package blockdev has the roles a block storage driver plays, in the terms of CSI, and the errors it answers with.
// A driver is a folder below this one and plays the roles its storage can.
package blockdev

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
)

// Volume is a block device that exists in the storage, attached or not.
type Volume struct {
	// ID is the storage's own, unique within the driver.
	ID string
	// Name was given at creation; creating again with the same name and parameters returns the same volume.
	Name      string
	SizeBytes int64
	// SourceSnapshotID is the volume snapshot the volume was made from, empty for a blank one.
	SourceVolumeSnapshotID string
}

// VolumeSnapshot is a frozen copy of a volume.
type VolumeSnapshot struct {
	ID             string
	Name           string
	SourceVolumeID string
	SizeBytes      int64
	Created        time.Time
	// ReadyToUse says that volumes can be made from it.
	ReadyToUse bool
}

// Device is a volume's block device file on this node.
type Device struct {
	// Path of the device file. It may be another one after a restart: what is behind it must be proved each time.
	Path string
	// ReadOnly says that the kernel refuses writes to the device.
	ReadOnly bool
}

// Properties are a driver's capabilities as data.
type Properties struct {
	// MaxAttachments is the number of volumes this node can have attached at once; 0 is no limit.
	MaxAttachments int
	// ReadOnlyAttach says that the driver honours AttachOptions.ReadOnly. Callers that need it check Device.ReadOnly.
	ReadOnlyAttach bool
	// VolumeSnapshots says that the driver is a VolumeSnapshotter too.
	VolumeSnapshots bool
}

// AttachOptions of one attachment.
type AttachOptions struct {
	ReadOnly bool
	// Index is the index digest of the layer disk that the volume holds, empty if the caller does not know it. A driver
	// that finds its devices by names that may be others' too takes the one that holds that disk; it proves nothing.
	Index digest.Digest
}

// Attacher makes volumes available on this node. Every method is idempotent and safe for concurrent use. Errors are of
// the classes in errors.go.
type Attacher interface {
	Properties() Properties
	// Attach returns when the device file is there, or ctx ends.
	Attach(ctx context.Context, volumeID string, opts AttachOptions) (Device, error)
	// Detach of a volume that is not attached is no error; one that is in use (mounted) is ErrInUse.
	Detach(ctx context.Context, volumeID string) error
	// Attached lists the volumes of this driver that are attached to this node now, by ID.
	Attached(ctx context.Context) (map[string]Device, error)
}

// Provisioner makes and deletes volumes. Every method is idempotent and safe for concurrent use.
type Provisioner interface {
	// CreateVolume may return before all of the storage knows of the volume: ErrNotFound may follow for some minutes,
	// and a list may lack it. Asking again by its name gives it at once.
	CreateVolume(ctx context.Context, req CreateVolumeRequest) (Volume, error)
	// DeleteVolume of one that does not exist is no error; of one that is attached, ErrInUse.
	DeleteVolume(ctx context.Context, volumeID string) error
	GetVolume(ctx context.Context, volumeID string) (Volume, error)
	ListVolumes(ctx context.Context) ([]Volume, error)
}

// CreateVolumeRequest for a blank volume or one made from a volume snapshot.
type CreateVolumeRequest struct {
	Name      string
	SizeBytes int64
	// SourceSnapshotID, if not empty, is copied; SizeBytes is then 0 for the snapshot's size or at least that.
	SourceVolumeSnapshotID string
	// Parameters in the words of a driver that knows some; they are not looked at for a volume that is there already.
	Parameters map[string]string
}

// VolumeSnapshotter makes and deletes volume snapshots. Every method is idempotent and safe for concurrent use.
type VolumeSnapshotter interface {
	// CreateVolumeSnapshot may return before the snapshot is ready; see VolumeSnapshot.ReadyToUse and
	// GetVolumeSnapshot.
	CreateVolumeSnapshot(ctx context.Context, name, sourceVolumeID string) (VolumeSnapshot, error)
	// DeleteVolumeSnapshot of one that does not exist is no error.
	DeleteVolumeSnapshot(ctx context.Context, snapshotID string) error
	GetVolumeSnapshot(ctx context.Context, snapshotID string) (VolumeSnapshot, error)
	ListVolumeSnapshots(ctx context.Context) ([]VolumeSnapshot, error)
}

// ProvisioningChecker is a driver whose storage may lack what its roles promise.
type ProvisioningChecker interface {
	// CheckProvisioning asks the storage whether it makes volumes and volume snapshots: ErrUnsupported says what it
	// lacks.
	CheckProvisioning(ctx context.Context) error
}

// ParameterTaker is a driver that knows parameters of volumes, see CreateVolumeRequest.Parameters.
type ParameterTaker interface {
	// TakeParameters picks the parameters that the driver knows, in its own words, and gives the keys of the others.
	TakeParameters(parameters map[string]string) (taken map[string]string, ignored []string)
}
