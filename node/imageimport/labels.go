package imageimport

import (
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
)

// These are the labels of image records and leases that are made here.
const (
	// labelDisk is the UUID of the disk.
	labelDisk = "berth.dev/import.disk"
	// labelRecord is the target and the name that the record was made with. Others copy labels to new names ("ctr
	// images tag") or move a name to another target (CRI). Either makes the record theirs.
	labelRecord = "berth.dev/import.record"
	// labelImage, on the record with the image's own name, is the reference as the disk has it.
	labelImage = "berth.dev/import.image"
	// labelSnapshot, followed by the snapshotter's name, makes the garbage collector keep the named snapshot and those
	// below it.
	labelSnapshot = "containerd.io/gc.ref.snapshot."
)

// These are CRI's labels: containerd/internal/cri/labels in 2.x, pkg/cri/labels in 1.7.
const (
	criNamespace   = "k8s.io"
	labelCRIImage  = "io.cri-containerd.image"
	criManaged     = "managed"
	labelCRIPinned = "io.cri-containerd.pinned"
	criPinned      = "pinned"
)

// doneLease marks a disk whose images are registered; workLease holds what is being registered.
func doneLease(uuid string) string { return "berth-imported-" + uuid }
func workLease(uuid string) string { return "berth-importing-" + uuid }

func recordLabel(target digest.Digest, name string) string { return target.String() + " " + name }

// owned reports whether the record is as it was made here.
func owned(img images.Image) bool {
	return img.Labels[labelDisk] != "" && img.Labels[labelRecord] == recordLabel(img.Target.Digest, img.Name)
}

// moved reports whether the record was made here and somebody has given it another target since.
func moved(img images.Image) bool {
	return !owned(img) && img.Labels[labelDisk] != "" && strings.HasSuffix(img.Labels[labelRecord], " "+img.Name)
}
