package readahead

import (
	"cmp"
	"slices"
	"time"

	"berth.dev/berth/readahead/accesslist"
)

// Result says what a replay is doing, or how it ended.
type Result string

// Values of Result.
const (
	// ResultWaiting is a replay that waits until others are done.
	ResultWaiting Result = "waiting"
	// ResultRunning is a replay that reads.
	ResultRunning Result = "running"
	// ResultDone is a replay that has read everything.
	ResultDone Result = "done"
	// ResultNothing is a replay that had nothing to read: there is no list, and the place of metadata is not known.
	ResultNothing Result = "nothing"
	// ResultMemory is a replay that ended because it may fill no more memory.
	ResultMemory Result = "memory"
	// ResultStopped is a replay that ended because its disk left or the daemon stopped.
	ResultStopped Result = "stopped"
	// ResultFailed is a replay that ended because its disk or its list could not be read.
	ResultFailed Result = "failed"
)

// Results are the values of Result that a replay can end with.
func Results() []Result {
	return []Result{ResultDone, ResultNothing, ResultMemory, ResultStopped, ResultFailed}
}

// Run is one replay, at one moment.
type Run struct {
	// Image is a reference, Disk the name of the disk on this node, DiskUUID its UUID.
	Image, Disk, DiskUUID string
	// Listed says that there is an access list; without one only metadata is read.
	Listed bool
	Result Result
	// Reason says in words why not everything was read.
	Reason string
	// TotalBytes are to be read. Bytes were read so far, in Pieces reads. Skipped is the number of parts that the disk
	// does not have.
	TotalBytes, Bytes, Pieces, Skipped int64
	// Wanted is when the start of the image was seen. Started and Ended are zero until the replay has.
	Wanted, Started, Ended time.Time
	// Took is the time from Started until Ended, or until now.
	Took time.Duration
}

// Rate is in bytes a second; it is 0 before the replay has started.
func (r *Run) Rate() int64 {
	if r.Took <= 0 {
		return 0
	}
	return int64(float64(r.Bytes) / r.Took.Seconds())
}

// key of replays that would read the same.
type key struct{ disk, image string }

// run is a replay. Reader.mu guards Run.
type run struct {
	Run
	progress
	key key
}

func (r *Reader) plan(of *run, list *accesslist.List, listed bool) {
	metadata, files := list.Size()
	r.mu.Lock()
	defer r.mu.Unlock()
	of.TotalBytes, of.Listed = metadata+files, listed
}

func (r *run) snapshot(now time.Time) Run {
	s := r.Run
	s.Bytes, s.Pieces, s.Skipped = r.bytes.Load(), r.pieces.Load(), r.skipped.Load()
	switch {
	case s.Started.IsZero():
	case s.Ended.IsZero():
		s.Took = now.Sub(s.Started)
	default:
		s.Took = s.Ended.Sub(s.Started)
	}
	return s
}

// keptRuns are remembered after their end, for people to look at.
const keptRuns = 64

// runs that are under way or were.
type runs struct {
	byKey map[key]*run
	// last are all, the oldest first.
	last []*run
	// ended is the sum of those that have ended, also of those that are forgotten.
	ended Totals
}

func newRuns() runs { return runs{byKey: make(map[key]*run)} }

func (r *runs) forget(old *run) {
	if r.byKey[old.key] == old {
		delete(r.byKey, old.key)
	}
}

// begin a replay; nil if the same one is under way or was not long ago, or too many are waiting.
func (r *Reader) begin(d *Disk, image string) *run {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	k := key{d.Identity.UUID, image}
	if old := r.runs.byKey[k]; old != nil && (old.Ended.IsZero() || now.Sub(old.Ended) < again) {
		return nil
	}
	under := 0
	for _, other := range r.runs.byKey {
		if other.Ended.IsZero() {
			under++
		}
	}
	if under >= maxWaiting {
		return nil
	}
	begun := &run{key: k, Run: Run{Image: image, Disk: d.Name, DiskUUID: d.Identity.UUID, Result: ResultWaiting, Wanted: now}}
	r.runs.byKey[k] = begun
	r.runs.last = append(r.runs.last, begun)
	for len(r.runs.last) > keptRuns {
		i := slices.IndexFunc(r.runs.last, func(old *run) bool { return !old.Ended.IsZero() })
		if i < 0 {
			break
		}
		r.runs.forget(r.runs.last[i])
		r.runs.last = slices.Delete(r.runs.last, i, i+1)
	}
	return begun
}

func (r *Reader) started(begun *run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	begun.Started, begun.Result = time.Now(), ResultRunning
}

// Runs are the replays under way, then the last ones that have ended. Of each the youngest comes first.
func (r *Reader) Runs() []Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	list := make([]Run, 0, len(r.runs.last))
	for _, one := range slices.Backward(r.runs.last) {
		list = append(list, one.snapshot(now))
	}
	slices.SortStableFunc(list, func(a, b Run) int { return cmp.Compare(order(&a), order(&b)) })
	return list
}

// Totals are sums since the Reader was made.
type Totals struct {
	Bytes, Pieces, Skipped int64
	// Running and Waiting replays now.
	Running, Waiting int
}

// Totals are the sums over all replays.
func (r *Reader) Totals() Totals {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.runs.ended
	for _, one := range r.runs.last {
		switch one.Result {
		case ResultRunning:
			t.Running++
		case ResultWaiting:
			t.Waiting++
		default:
			continue
		}
		t.Bytes += one.bytes.Load()
		t.Pieces += one.pieces.Load()
		t.Skipped += one.skipped.Load()
	}
	return t
}

func order(r *Run) int {
	switch r.Result {
	case ResultRunning:
		return 0
	case ResultWaiting:
		return 1
	default:
		return 2
	}
}
