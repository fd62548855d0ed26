// Package diskfailures reports disks that failed: in the node's events, and in the events of the disk's image snapshot
// if that is one of this node's own.
package diskfailures

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/log"

	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
)

// Reporter takes reports without making anybody wait: a disk fails early in a start, or while layers are asked for.
type Reporter struct {
	ledger *events.Ledger
	queue  chan failure
}

type failure struct {
	disk stage.DiskStatus
	err  error
}

// maxFailures bounds the failures that wait to be reported; a node has fewer disks.
const maxFailures = 64

// New makes a reporter that writes to a ledger.
func New(l *events.Ledger) *Reporter {
	return &Reporter{l, make(chan failure, maxFailures)}
}

// Report notes that a disk has failed. It is safe for concurrent use.
func (r *Reporter) Report(disk stage.DiskStatus, err error) {
	select {
	case r.queue <- failure{disk, err}:
	default: // better without its image snapshot than not at all
		r.ledger.DiskFailed(disk.Name, disk.ImageSnapshot.Name, disk.Holders, err)
	}
}

// noteTimeout bounds writing an event to the store of image snapshots.
const noteTimeout = 10 * time.Second

// Owners knows which image snapshot a disk belongs to.
type Owners interface {
	// ImageSnapshot finds the image snapshot that a disk belongs to, by the disk's UUID.
	ImageSnapshot(diskUUID string) (name, id string, ok bool)
}

// Notes records the events of image snapshots.
type Notes interface {
	// NoteDiskFailure records in the events of an image snapshot that its disk failed.
	NoteDiskFailure(ctx context.Context, name, id, message string) error
}

// Run passes reports on until ctx ends.
func (r *Reporter) Run(ctx context.Context, owners Owners, notes Notes) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-r.queue:
			r.tell(ctx, f, owners, notes)
		}
	}
}

func (r *Reporter) tell(ctx context.Context, f failure, owners Owners, notes Notes) {
	disk := f.disk
	// The image snapshot that the disk was attached for may be withdrawn by now. A disk attached by hand may belong to
	// one of a catalog.
	name, id := disk.ImageSnapshot.Name, disk.ImageSnapshot.ID
	if name == "" {
		name, id, _ = owners.ImageSnapshot(disk.UUID)
	}
	r.ledger.DiskFailed(disk.Name, name, disk.Holders, f.err)
	if name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	message := fmt.Sprintf("its disk %s on this node is out of service, %d snapshots use it: %v", disk.Name, disk.Holders, f.err)
	if err := notes.NoteDiskFailure(ctx, name, id, message); err != nil {
		log.G(ctx).WithError(err).WithField("image_snapshot", name).Warn("event of the image snapshot is not recorded")
	}
}
