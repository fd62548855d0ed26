package main

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/log"

	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
)

// diskFailures tells people whose disks failed: in the node's events, and in those of the image snapshot if it is one
// of this node's own. The stage tells of them early in a start, and must not wait.
type diskFailures struct {
	ledger *events.Ledger
	queue  chan diskFailure
}

type diskFailure struct {
	disk stage.DiskStatus
	err  error
}

// maxFailures that wait to be told of; a node has fewer disks.
const maxFailures = 64

func newDiskFailures(l *events.Ledger) *diskFailures {
	return &diskFailures{l, make(chan diskFailure, maxFailures)}
}

func (f *diskFailures) add(disk stage.DiskStatus, err error) {
	select {
	case f.queue <- diskFailure{disk, err}:
	default: // rather without its image snapshot than not at all
		f.ledger.DiskFailed(disk.Name, disk.ImageSnapshot.Name, disk.Holders, err)
	}
}

// noteTimeout bounds writing an event to the store of image snapshots.
const noteTimeout = 10 * time.Second

// run tells until ctx ends. whose finds the image snapshot of a disk by its UUID; note writes an event of one.
func (f *diskFailures) run(ctx context.Context, whose func(uuid string) (name, id string, ok bool), note func(ctx context.Context, name, id, message string) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case failed := <-f.queue:
			f.tell(ctx, failed, whose, note)
		}
	}
}

func (f *diskFailures) tell(ctx context.Context, failed diskFailure, whose func(string) (name, id string, ok bool), note func(context.Context, string, string, string) error) {
	disk := failed.disk
	// What was attached for it may be withdrawn by now; what was attached by hand may be one of a catalog.
	name, id := disk.ImageSnapshot.Name, disk.ImageSnapshot.ID
	if name == "" {
		name, id, _ = whose(disk.UUID)
	}
	f.ledger.DiskFailed(disk.Name, name, disk.Holders, failed.err)
	if name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	message := fmt.Sprintf("its disk %s on this node is out of service, %d snapshots use it: %v", disk.Name, disk.Holders, failed.err)
	if err := note(ctx, name, id, message); err != nil {
		log.G(ctx).WithError(err).WithField("image_snapshot", name).Warn("event of the image snapshot is not recorded")
	}
}
