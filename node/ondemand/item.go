package ondemand

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/internal/backoff"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/stage"
)

// item is what is known about an entry that has a disk. view.mu guards the fields that change.
type item struct {
	id, name string
	source   catalog.Source
	identity layerdisk.Identity
	// disk is the name that the stage knows it by.
	disk string
	// never says why it cannot be attached to this node at all.
	never string

	// attached and unreachable are the values that the index last got.
	attached    bool
	unreachable string
	// failures is the number of failures in a row, err is the last of them, and retryAt is when to try again after it.
	failures int
	retryAt  time.Time
	err      error
	// passedOver counts the pulls that try others because this one failed.
	passedOver int
}

// stateOf returns the state of an entry in the words of the matcher, which knows no catalog.
func stateOf(e *catalog.Entry) string {
	if e.State == catalog.StateAvailable {
		return matcher.StateAvailable
	}
	return e.State
}

// diskName begins with the name that people know and ends with a digest of what identifies this disk, so that new
// content of the same image snapshot is another disk.
func (it *item) diskName() string {
	const most, digits = 48, 12
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(it.name))
	name = strings.Trim(name[:min(len(name), most)], ".-_")
	if name != "" {
		name += "-"
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", it.id, it.source, it.identity))
	return name + hex.EncodeToString(sum[:])[:digits]
}

func (it *item) spec() stage.Spec {
	return stage.Spec{Name: it.disk, Driver: it.source.Driver, VolumeID: it.source.VolumeID,
		VolumeSnapshotID: it.source.VolumeSnapshotID, Expect: it.identity,
		ImageSnapshot: stage.ImageSnapshot{Name: it.name, ID: it.id}}
}

// These are the waits after a disk could not be attached. They are needed because every layer of every pull asks. The
// first is short, because a passing fault of the storage should not cost more than a few pulls.
const (
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
)

// failed notes that attaching did not succeed.
func (it *item) failed(now time.Time, err error) {
	it.retryAt = now.Add(backoff.Doubling{First: firstRetry, Most: lastRetry}.After(it.failures))
	it.failures++
	it.err = err
}

func (it *item) succeeded() { it.failures, it.retryAt, it.err = 0, time.Time{}, nil }

// waits returns why attaching the disk is not tried now; empty if it may be tried.
func (it *item) waits(now time.Time) string {
	if it.passedOver == 0 && !now.Before(it.retryAt) {
		return ""
	}
	return fmt.Sprintf("attaching it ended with: %v; it may be tried again from %s on", it.err, it.retryAt.UTC().Format(time.TimeOnly))
}

// viewOf returns what the state of a disk in the stage means for a choice. A disk that is being detached is neither
// attached nor unreachable: it can be attached again.
func viewOf(d *stage.DiskStatus) (attached bool, unreachable string) {
	switch d.State {
	case stage.StateDraining:
		return false, fmt.Sprintf("its disk %s is being drained", d.Name)
	case stage.StateFailed:
		return false, fmt.Sprintf("its disk %s is out of service: %v", d.Name, d.LastError)
	case stage.StateUnmounting, stage.StateDetaching, stage.StateDeleting:
		return false, ""
	default:
		return true, ""
	}
}
