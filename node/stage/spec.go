package stage

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// Spec says which layer disk to have ready on this node.
type Spec struct {
	// Name to know the disk by: 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit.
	Name string `json:"name"`
	// Driver is a key of Config.Drivers.
	Driver string `json:"driver"`
	// VolumeID is an existing volume of the driver, which is never deleted. Either this or VolumeSnapshotID.
	VolumeID string `json:"volumeID,omitempty"`
	// VolumeSnapshotID is a volume snapshot of which a volume is made for this node. The volume is deleted when the
	// disk leaves the node.
	VolumeSnapshotID string `json:"snapshotID,omitempty"`
	// Expect, in the fields that are not empty, is the only disk that is accepted.
	Expect layerdisk.Identity `json:"expect,omitzero"`
	// Keep the disk ready while nothing uses it.
	Keep bool `json:"keep,omitempty"`
	// ImageSnapshot that the disk belongs to, if that is known. It is remembered and shown, and decides nothing.
	ImageSnapshot ImageSnapshot `json:"imageSnapshot,omitzero"`
}

// ImageSnapshot names an image snapshot; the zero value means that none is known.
type ImageSnapshot struct {
	Name string `json:"name,omitempty"`
	ID   string `json:"id,omitempty"`
}

func (sp Spec) validate() error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if !validName(sp.Name) {
		return refuse("disk name %q: want 1 to 64 of a-z, 0-9, '.', '_' and '-', with a letter or digit at both ends", sp.Name)
	}
	if sp.Driver == "" {
		return refuse("disk %s: no driver named", sp.Name)
	}
	if (sp.VolumeID == "") == (sp.VolumeSnapshotID == "") {
		return refuse("disk %s: name either a volume or a volume snapshot", sp.Name)
	}
	if sp.Expect.IndexDigest != "" {
		if err := sp.Expect.IndexDigest.Validate(); err != nil {
			return refuse("disk %s: expected index digest %q: %w", sp.Name, sp.Expect.IndexDigest, err)
		}
	}
	return nil
}

const maxNameBytes = 64

// validName keeps names fit for command lines, logs and the names of volumes.
func validName(name string) bool {
	if name == "" || len(name) > maxNameBytes {
		return false
	}
	for i := range len(name) {
		c := name[i]
		inner := i > 0 && i < len(name)-1 && (c == '.' || c == '_' || c == '-')
		if !inner && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// sameSource says whether two specs mean the same storage.
func (sp Spec) sameSource(other Spec) bool {
	return sp.Driver == other.Driver && sp.VolumeID == other.VolumeID && sp.VolumeSnapshotID == other.VolumeSnapshotID
}

// State is what a disk is doing, for people and metrics.
type State string

// States of a disk, in the order of its life. From attaching to mounting they are the journalled steps.
const (
	StateWanted     State = "wanted"
	StateCreating   State = "creating"
	StateAttaching  State = "attaching"
	StateMounting   State = "mounting"
	StateInUse      State = "in-use"
	StateIdle       State = "idle"
	StateDraining   State = "draining"
	StateUnmounting State = "unmounting"
	StateDetaching  State = "detaching"
	StateDeleting   State = "deleting"
	// StateFailed is a disk that should serve and does not; LastError says why. It is tried again in the background.
	StateFailed State = "failed"
)

// DiskStatus is one disk at one moment. It is a copy.
type DiskStatus struct {
	Name, Driver string
	// VolumeID is empty until a volume was made of VolumeSnapshotID.
	VolumeID, VolumeSnapshotID string
	// UUID and IndexDigest are empty until the disk was proved for the first time.
	UUID        string
	IndexDigest digest.Digest
	State       State
	// Serving says that new layers are handed out of it.
	Serving bool
	// Device and MountPoint are empty if there is none now.
	Device, MountPoint string
	// Place is where it is mounted when it serves: containers that were started from it name directories below.
	Place     string
	SizeBytes int64
	// Layers on the disk, those of them held, and the number of holders.
	Layers, LayersInUse, Holders int
	// Since is the time of the last change of State among the journalled ones.
	Since time.Time
	// IdleSince is when the disk was last held, or came up if that was later; zero while it is held or not up.
	IdleSince time.Time
	// LastError is nil if all is well.
	LastError error
	Keep      bool
	// ImageSnapshot is that of the Spec.
	ImageSnapshot ImageSnapshot
}
