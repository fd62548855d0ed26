package readahead

import (
	"cmp"
	"slices"
	"time"

	"berth.dev/berth/readahead/accesslist"
)

// Result is how a replay stands.
type Result string

// Results.
const (
	// ResultWaiting is a replay that waits until others are done.
	ResultWaiting Result = "waiting"
	ResultRunning Result = "running"
	// ResultDone is one that read all there is.
	ResultDone Result = "done"
	// ResultNothing is one with nothing to read: no list, and no metadata that is known.
	ResultNothing Result = "nothing"
	// ResultMemory is one that ended because it may fill no more memory.
	ResultMemory Result = "memory"
	// ResultStopped is one whose disk left or whose daemon ended.
	ResultStopped Result = "stopped"
	// ResultFailed is one whose disk or list could not be read.
	ResultFailed Result = "failed"
)

// Results lists those that a replay can end with.
func Results() []Result {
	return []Result{ResultDone, ResultNothing, ResultMemory, ResultStopped, ResultFailed}
}

// Run is one replay, at one moment.
type Run struct {
	// Image by its reference; Disk by its name on this node, and its UUID.
	Image, Disk, DiskUUID string
	// Listed says that there is an access list; without one only metadata is read.
	Listed bool
	Result Result
	// Reason for not being done, in words.
	Reason string
	// TotalBytes are to be read, Bytes were, in so many Pieces; Skipped parts are not there.
	TotalBytes, Bytes, Pieces, Skipped int64
	// Wanted is when the start was seen; Started and Ended are zero until then.
	Wanted, Started, Ended time.Time
	// Took is the time since Started, until Ended if that was.
	Took time.Duration
}

// Rate in bytes a second; 0 if it has not started.
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

func (h *Reader) plan(r *run, list *accesslist.List, listed bool) {
	metadata, files := list.Size()
	h.mu.Lock()
	defer h.mu.Unlock()
	r.TotalBytes, r.Listed = metadata+files, listed
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
func (h *Reader) begin(d *Disk, image string) *run {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	k := key{d.Identity.UUID, image}
	if old := h.runs.byKey[k]; old != nil && (old.Ended.IsZero() || now.Sub(old.Ended) < again) {
		return nil
	}
	under := 0
	for _, r := range h.runs.byKey {
		if r.Ended.IsZero() {
			under++
		}
	}
	if under >= maxWaiting {
		return nil
	}
	r := &run{key: k, Run: Run{Image: image, Disk: d.Name, DiskUUID: d.Identity.UUID, Result: ResultWaiting, Wanted: now}}
	h.runs.byKey[k] = r
	h.runs.last = append(h.runs.last, r)
	for len(h.runs.last) > keptRuns {
		i := slices.IndexFunc(h.runs.last, func(r *run) bool { return !r.Ended.IsZero() })
		if i < 0 {
			break
		}
		h.runs.forget(h.runs.last[i])
		h.runs.last = slices.Delete(h.runs.last, i, i+1)
	}
	return r
}

func (h *Reader) started(r *run) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Started, r.Result = time.Now(), ResultRunning
}

// Runs that are under way and the last that were, those under way first, then the youngest first.
func (h *Reader) Runs() []Run {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	list := make([]Run, 0, len(h.runs.last))
	for _, r := range slices.Backward(h.runs.last) {
		list = append(list, r.snapshot(now))
	}
	slices.SortStableFunc(list, func(a, b Run) int { return cmp.Compare(order(&a), order(&b)) })
	return list
}

// Totals since the reader was made.
type Totals struct {
	Bytes, Pieces, Skipped int64
	// Running and Waiting replays now.
	Running, Waiting int
}

// Totals of all replays.
func (h *Reader) Totals() Totals {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.runs.ended
	for _, r := range h.runs.last {
		switch r.Result {
		case ResultRunning:
			t.Running++
		case ResultWaiting:
			t.Waiting++
		default:
			continue
		}
		t.Bytes += r.bytes.Load()
		t.Pieces += r.pieces.Load()
		t.Skipped += r.skipped.Load()
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
