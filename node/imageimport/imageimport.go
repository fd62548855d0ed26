// Package imageimport registers the images of attached layer disks in containerd, so that containers start from them
// while no registry answers: the image record, its index, manifest and config, and a snapshot for each layer, which the
// disk serves as it does for a pull. When the disk leaves, all of it is taken back.
//
// The state is kept in containerd itself. The labels of every record name its disk and its target; a lease without
// resources marks a disk whose images are all registered. So nothing has to agree with a journal of ours: after a crash
// of either side, what is found in containerd is compared with the attached disks, and the difference is corrected. An
// image is registered once for each time its disk is attached; if somebody removes it, it is not registered again until
// the next time.
//
// No lock that a request from containerd could need is held here: containerd asks the snapshotter for layers while this
// package asks containerd.
package imageimport

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// Phase says how far a disk is on its way in or out.
type Phase int

// These are the phases of a disk.
const (
	// Coming is a disk that does not serve yet. Its images may still be registered from an earlier time.
	Coming Phase = iota
	// Serving is a disk that serves its layers.
	Serving
	// Leaving is a disk that no longer serves its layers: it drains, failed, or is being given up.
	Leaving
)

// Disk is an attached layer disk.
type Disk struct {
	Name, UUID string
	Phase      Phase
	// Keep says that the disk stays while nothing uses it.
	Keep bool
	// Holders is the number of snapshots that are layers on the disk.
	Holders int
	// Index is shared and must not be changed. It is nil unless Phase is Serving.
	Index *layerdisk.Index
}

// Use says what uses a disk.
type Use struct {
	// Chains are the chain IDs of the snapshots that are layers on the disk.
	Chains map[digest.Digest]bool
	// Others is the number of snapshots on top of them that are not layers on a disk: those of containers, and layers
	// that were pulled.
	Others int
}

// Node is where the disks are attached.
type Node interface {
	Disks() []Disk
	// Changed is closed at the next change of a disk.
	Changed() <-chan struct{}
	// Uses returns what uses each disk, by the disk's UUID.
	Uses(ctx context.Context) (map[string]Use, error)
	// Detach gives up a disk that nothing uses. For a disk in use the error is errdefs.ErrFailedPrecondition.
	Detach(ctx context.Context, name string) error
}

// Containerd has the services that an Importer needs. Their contexts carry a namespace.
type Containerd struct {
	Content   content.Store
	Images    images.Store
	Leases    leases.Manager
	Snapshots snapshots.Snapshotter
	// Usable returns why images must not be registered in a namespace, nil if they may be.
	Usable func(ctx context.Context, namespace string) error
}

// Config says what an Importer registers, and where.
type Config struct {
	// Namespaces are those of containerd in which images are registered.
	Namespaces []string
	// Snapshotter is the name that containerd knows berth by.
	Snapshotter string
	// Pinned keeps the kubelet from removing the images.
	Pinned bool
	// Images are patterns of the normalised references that may be registered; '*' stands for any characters. Without
	// patterns all images may be registered.
	Images []string
	// IdleTimeout is how long a disk stays if only its registered images use it, unless it is kept; 0 keeps all disks.
	IdleTimeout time.Duration
	// Platform is that of containers on this node.
	Platform platforms.MatchComparer
	// Marker is a file that lists the namespaces in which something may have to be taken back. If there is nothing to
	// take back, the file does not exist.
	Marker string
	// Observer may be nil.
	Observer Observer
}

// Result is what became of an image. The set of values is fixed, so that it can be a metric's label.
type Result string

// These are the values of Result.
const (
	// Registered is an image that can be used without a registry.
	Registered Result = "registered"
	// Left is an image that is left alone, because somebody else has registered its name.
	Left Result = "left"
	// Refused is an image that cannot be registered.
	Refused Result = "refused"
	// Failed is an image that could not be registered and is tried again.
	Failed Result = "failed"
	// Removed is an image that was registered and that somebody has removed or replaced.
	Removed Result = "removed"
	// Withdrawn is an image that was registered and then taken back, because its disk leaves.
	Withdrawn Result = "withdrawn"
)

// Results returns all values of Result.
func Results() []Result {
	return []Result{Registered, Left, Refused, Failed, Removed, Withdrawn}
}

// Image is an image of a disk, and what became of it.
type Image struct {
	// Reference is the reference on the disk, normalised.
	Reference, Namespace string
	Result               Result
	// Reason says why in words; it is empty for Registered.
	Reason string
}

// Observer is notified of each image whose state changed. It must not block.
type Observer interface {
	Image(ctx context.Context, disk string, image Image)
}

type noObserver struct{}

func (noObserver) Image(context.Context, string, Image) {}

// lost reports whether containerd does not answer, so that it is useless to try the next thing.
func lost(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errdefs.IsCanceled(err)
}
