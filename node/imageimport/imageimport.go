// Package imageimport registers the images of attached layer disks in containerd, so that containers start from them
// while no registry answers: the image record, its index, manifest and config, and a snapshot for each layer, which the
// disk serves as it does for a pull. When the disk leaves, all of it is taken back.
//
// What was done is written down where it was done. Every record that is made carries labels that say for which disk and
// target; a lease without resources marks a disk whose images are all registered. So nothing has to agree with a
// journal of ours: after a crash of either side, what is found in containerd is compared with the disks that are there,
// and the difference is made good. An image is registered once for each time its disk is attached; one that somebody
// removes stays away until the next.
//
// No lock is held that a request of containerd could need: containerd asks the snapshotter for layers while it is asked
// here.
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

// Phase is what a disk is about to do.
type Phase int

// Phases of a disk.
const (
	// Coming is a disk on its way, whose images may be registered from before.
	Coming Phase = iota
	// Serving is a disk whose layers are handed out.
	Serving
	// Leaving is a disk whose layers are not handed out any more: it drains, failed, or is being given up.
	Leaving
)

// Disk is an attached layer disk.
type Disk struct {
	Name, UUID string
	Phase      Phase
	// Keep says that it stays while nothing uses it.
	Keep bool
	// Holders are the snapshots that are layers on it.
	Holders int
	// Index is shared and not changed; nil unless Phase is Serving.
	Index *layerdisk.Index
}

// Use says what uses a disk.
type Use struct {
	// Chains of the snapshots that are layers on it.
	Chains map[digest.Digest]bool
	// Others are the snapshots on top of those that are not layers on a disk: those of containers, and layers that were
	// pulled.
	Others int
}

// Node is where the disks are attached.
type Node interface {
	Disks() []Disk
	// Changed is closed at the next change of a disk.
	Changed() <-chan struct{}
	// Uses of disks by their UUIDs.
	Uses(ctx context.Context) (map[string]Use, error)
	// Detach gives up a disk that nothing uses; one that is used is errdefs.ErrFailedPrecondition.
	Detach(ctx context.Context, name string) error
}

// Containerd has the services that an Importer needs. Their contexts carry a namespace.
type Containerd struct {
	Content   content.Store
	Images    images.Store
	Leases    leases.Manager
	Snapshots snapshots.Snapshotter
	// Usable says why images must not be registered in a namespace, nil if they may.
	Usable func(ctx context.Context, namespace string) error
}

// Config says what an Importer registers, and where.
type Config struct {
	// Namespaces of containerd in which images are registered.
	Namespaces []string
	// Snapshotter is the name that containerd knows berth by.
	Snapshotter string
	// Pinned keeps the kubelet from removing the images.
	Pinned bool
	// Images are the patterns of normalised references that may be registered; '*' stands for any characters. Without
	// patterns all images may.
	Images []string
	// IdleTimeout is how long a disk stays that nothing uses but its registered images, unless it is kept; 0 keeps all.
	IdleTimeout time.Duration
	// Platform of containers on this node.
	Platform platforms.MatchComparer
	// Marker is a file that names the namespaces in which something may have to be taken back. If there is nothing to
	// take back the file does not exist.
	Marker string
	// Observer may be nil.
	Observer Observer
}

// Result is what became of an image. The set of values is fixed, so that it can be a metric's label.
type Result string

// Values of Result.
const (
	// Registered images can be used without a registry.
	Registered Result = "registered"
	// Left alone is an image whose name somebody else has registered.
	Left Result = "left"
	// Refused is an image that cannot be registered.
	Refused Result = "refused"
	// Failed is an image that could not be registered and is tried again.
	Failed Result = "failed"
	// Removed is an image that was registered and that somebody has removed or replaced.
	Removed Result = "removed"
	// Withdrawn is an image that was registered and taken back, since its disk leaves.
	Withdrawn Result = "withdrawn"
)

// Results are all values of Result.
func Results() []Result {
	return []Result{Registered, Left, Refused, Failed, Removed, Withdrawn}
}

// Image is an image of a disk, and what became of it.
type Image struct {
	// Reference as the disk has it, normalised.
	Reference, Namespace string
	Result               Result
	// Reason says why in words; it is empty for Registered.
	Reason string
}

// Observer is told of each image whose state changed. It must not block.
type Observer interface {
	Image(ctx context.Context, disk string, image Image)
}

type noObserver struct{}

func (noObserver) Image(context.Context, string, Image) {}

// lost says that containerd does not answer, so that trying the next thing is of no use.
func lost(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errdefs.IsCanceled(err)
}
