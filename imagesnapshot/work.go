package imagesnapshot

import "time"

// Step is what the life cycle was about to do when it wrote the journal.
type Step string

// Steps of a build, in their order. Each can be repeated.
const (
	// StepPlan: find out which layers the images have and where the disk starts from.
	StepPlan Step = "Plan"
	// StepVolume: make the volume VolumeName.
	StepVolume Step = "Volume"
	// StepBuild: attach it and build onto it.
	StepBuild Step = "Build"
	// StepVolumeSnapshots: detach it and make the volume snapshots.
	StepVolumeSnapshots Step = "Snapshot"
	// StepWait: the storage completes the volume snapshots.
	StepWait Step = "Wait"
	// StepCleanup: take down what is not needed any more. It ends the work.
	StepCleanup Step = "Cleanup"
)

// Work is what the life cycle has under way for one image snapshot. Volumes and volume snapshots have names that follow
// from it and are written here before they are made, so that after a crash everything that exists is found again. The
// JSON keys of volume snapshots are shorter than the names of their fields: stores have them already.
type Work struct {
	Step Step `json:"step"`
	// Attempt counts the builds of this image snapshot; it is part of the names, so that no two builds share anything.
	Attempt int `json:"attempt"`
	// Generation of the spec that is being built.
	Generation int64     `json:"generation"`
	Deadline   time.Time `json:"deadline,omitzero"`
	// Failures in a row, and the time before which nothing is tried again.
	Failures  int       `json:"failures,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`

	// Driver of the storage that the work is in; see Content.Driver.
	Driver     string `json:"driver,omitempty"`
	VolumeName string `json:"volumeName,omitempty"`
	VolumeID   string `json:"volumeID,omitempty"`
	// Building says that a build onto the volume may have begun. One that finds it set was interrupted and begins anew,
	// on another volume.
	Building bool `json:"building,omitempty"`
	// NoBase says that starting from another disk did not work.
	NoBase bool `json:"noBase,omitempty"`
	// SizeBytes of the volume is WantedBytes, or the size of the volume snapshot that it is made from, if that is
	// larger.
	SizeBytes   int64 `json:"sizeBytes,omitempty"`
	WantedBytes int64 `json:"wantedBytes,omitempty"`
	// BaseVolumeSnapshotID is the volume snapshot the volume is made from, BaseName the image snapshot it belongs to.
	BaseVolumeSnapshotID string `json:"baseSnapshotID,omitempty"`
	BaseName             string `json:"baseName,omitempty"`

	// Donors are the other disks that layers are copied from.
	Donors []Donor `json:"donors,omitempty"`

	// Built is what the build made, once it has. Its VolumeSnapshots are those that are being made; one without an ID
	// may not exist yet.
	Built *Content `json:"built,omitempty"`
	// Previous is what was there before, for the time in which Built serves already but is not complete (E-23).
	Previous *Content `json:"previous,omitempty"`
	// Garbage is to be deleted in StepCleanup.
	Garbage []Leftover `json:"garbage,omitempty"`
}

// Donor is a disk that a build copies layers from: a volume of its own, made from a volume snapshot, attached read-only
// and deleted after the build.
type Donor struct {
	// Name of the image snapshot that the volume snapshot belongs to.
	Name             string `json:"name"`
	VolumeSnapshotID string `json:"snapshotID"`
	// SizeBytes to ask for.
	SizeBytes  int64  `json:"sizeBytes,omitempty"`
	VolumeName string `json:"volumeName"`
	VolumeID   string `json:"volumeID,omitempty"`
}

// DonorVolumes are the volumes of all donors, for nobody to need any more.
func (w *Work) DonorVolumes() []Leftover {
	var list []Leftover
	for _, d := range w.Donors {
		list = append(list, Leftover{Driver: w.Driver, VolumeID: d.VolumeID, VolumeName: d.VolumeName, Attached: true})
	}
	return list
}

// Leftover is something in the storage that nobody needs any more. Either part may be empty.
type Leftover struct {
	// Driver of the storage that it is in; see Content.Driver.
	Driver     string `json:"driver,omitempty"`
	VolumeID   string `json:"volumeID,omitempty"`
	VolumeName string `json:"volumeName,omitempty"`
	// Attached says that a build may have the volume attached, so that it has to be detached first. Otherwise only
	// nodes can have it attached, and it is deleted once they have detached it.
	Attached           bool   `json:"attached,omitempty"`
	VolumeSnapshotID   string `json:"snapshotID,omitempty"`
	VolumeSnapshotName string `json:"snapshotName,omitempty"`
}
