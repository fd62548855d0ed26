package stage

import (
	"context"
	"fmt"
	"time"

	"berth.dev/berth/layerdisk"
)

// disk is one disk of the fleet. Stager.mu guards all fields but key and health; rec is written only by who holds key.
type disk struct {
	// key is held while something is done with the disk, attaching and mounting included.
	key    key
	health health

	rec record
	// journalled says that the journal has the disk.
	journalled bool
	// removed says that the fleet and the journal have forgotten the disk.
	removed bool
	// abort, if not nil, ends the attempt in the background that has key.
	abort context.CancelFunc
	// waiters are the Stage calls that wait for key.
	waiters int

	// up says that the disk is mounted where rec says, proved and healthy. Then lookup is of its index.
	up      bool
	upSince time.Time
	// lookup stays when the disk fails, so that it can be said what is missing.
	lookup    *layerdisk.Lookup
	device    string
	sizeBytes int64

	// pendingSince is set from when the disk sets out until the first attempt to have it ready has ended.
	pendingSince time.Time

	// visitors by number, and how many there were so far; see Visit.
	visitors map[int]context.CancelFunc
	visited  int

	err      error
	failures int
	retryAt  time.Time
}

// state in words for people.
func (d *disk) state(holders int) State {
	switch {
	case d.up && d.rec.Draining:
		return StateDraining
	case d.up && holders > 0:
		return StateInUse
	case d.up:
		return StateIdle
	case d.err != nil && d.rec.Goal == goalStaged:
		return StateFailed
	}
	return d.rec.Step
}

// source names the storage of a spec.
func (sp Spec) source() string {
	if sp.VolumeSnapshotID != "" {
		return fmt.Sprintf("volume snapshot %s of driver %s", sp.VolumeSnapshotID, sp.Driver)
	}
	return fmt.Sprintf("volume %s of driver %s", sp.VolumeID, sp.Driver)
}

// key is a mutex whose waiting obeys a context.
type key chan struct{}

func newKey() key { return make(key, 1) }

func (k key) lock(ctx context.Context) error {
	select {
	case k <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k key) tryLock() bool {
	select {
	case k <- struct{}{}:
		return true
	default:
		return false
	}
}

func (k key) unlock() { <-k }
