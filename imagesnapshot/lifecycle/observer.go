package lifecycle

import (
	"time"

	"berth.dev/berth/imagesnapshot"
)

// Observer hears what becomes of image snapshots: each thing once, after it was written. It must not block. Reasons are
// those of imagesnapshot.Reasons.
type Observer interface {
	BuildStarted()
	BuildEnded(o BuildOutcome)
	// Matched is called for each use.
	Matched()
	// Ended is called when an image snapshot that was usable becomes unavailable in time, and when one is deleted.
	Ended(e Ending, reason imagesnapshot.Reason)
	Swept(r SweepReport)
}

// BuildOutcome is how the work for one content ended, from its beginning to the complete volume snapshots.
type BuildOutcome struct {
	// Reason is imagesnapshot.ReasonReady or ReasonUpdated if it succeeded.
	Reason imagesnapshot.Reason
	// Took is counted from when a place among the builds was free.
	Took time.Duration
	// FetchedBytes, compressed, and ReusedBytes, unpacked; 0 where nothing was built.
	FetchedBytes, ReusedBytes int64
}

// Ending is how the life of an image snapshot ends.
type Ending string

// Endings.
const (
	// EndingExpired: it was usable and became unavailable in time.
	EndingExpired Ending = "expired"
	// EndingDeleted: nothing of it remains.
	EndingDeleted Ending = "deleted"
)

// Endings lists all.
func Endings() []Ending { return []Ending{EndingExpired, EndingDeleted} }

type noObserver struct{}

func (noObserver) BuildStarted()                      {}
func (noObserver) BuildEnded(BuildOutcome)            {}
func (noObserver) Matched()                           {}
func (noObserver) Ended(Ending, imagesnapshot.Reason) {}
func (noObserver) Swept(SweepReport)                  {}
