// Package events counts and remembers how pulls were answered, and reports to watchers what happens on this node to
// layers, to disks, and to the images of disks.
package events

import (
	"container/list"
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

const (
	// maxRemembered bounds the layers whose last answer is kept: a node's images have a few thousand layers at most,
	// and one entry takes about half a kilobyte.
	maxRemembered = 4096
	// maxReasons bounds the reasons of misses that are counted separately, whatever callers pass.
	maxReasons = 32
	// watchBuffer is what a watcher may lag behind before it loses events.
	watchBuffer = 256
)

// Kind says what an Event is about.
type Kind int

// Event kinds.
const (
	_ Kind = iota
	// Hit is a layer found on a disk.
	Hit
	// Miss is a layer that no disk could serve, so that containerd pulls it.
	Miss
	// Failure is a layer whose lookup failed, so that containerd pulls it.
	Failure
	// DiskAttached and DiskDetached are about a disk; one that drains counts as detached.
	DiskAttached
	DiskDetached
	// DiskFailed is a disk that served and is out of service; Detail says why.
	DiskFailed
	// ImageImported means that an image of a disk was registered in containerd, ImageWithdrawn that this was undone.
	ImageImported
	ImageWithdrawn
	// ImageNotImported means that an image of a disk is not, or no longer, registered in containerd; Detail says why.
	ImageNotImported
)

// These are reasons of misses in addition to those of package stage.
const (
	// ReasonProtocol means that containerd asked in a way that a disk cannot answer.
	ReasonProtocol = "protocol"
	// ReasonError means that the lookup failed.
	ReasonError = "error"
)

// Event is something that happened.
type Event struct {
	Time     time.Time
	Kind     Kind
	ChainID  digest.Digest
	ImageRef string
	// Disk is a name, or the UUID if only that is known.
	Disk string
	// ImageSnapshot is the name of the image snapshot whose disk failed, empty if it is not known.
	ImageSnapshot string
	// MatchedBy is how the layer of a Hit was recognised.
	MatchedBy layerdisk.Match
	// Reason is why a Miss happened, one of few values. Detail says more about a Miss or a Failure.
	Reason, Detail string
	// Bytes is how much a Hit saved from being pulled; 0 if unknown.
	Bytes int64
}

// Counts are the answers since the start.
type Counts struct {
	// Hits are counted by how the layer was recognised.
	Hits map[layerdisk.Match]uint64
	// Misses are counted by reason.
	Misses         map[string]uint64
	BytesNotPulled uint64
}

// Ledger counts how pulls were answered, remembers the last answer for each layer, and passes events on to watchers. It
// is safe for concurrent use, and recording never waits for a watcher.
type Ledger struct {
	// mu guards all below.
	mu       sync.Mutex
	counts   Counts
	order    *list.List // of Event, the newest answers in front
	last     map[digest.Digest]*list.Element
	watchers map[*Watcher]struct{}
	closed   bool
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{
		counts:   Counts{Hits: map[layerdisk.Match]uint64{}, Misses: map[string]uint64{}},
		order:    list.New(),
		last:     map[digest.Digest]*list.Element{},
		watchers: map[*Watcher]struct{}{},
	}
}

// DiskFailed records that a disk is out of service, how many snapshots use it, and whose image snapshot it holds, if
// that is known.
func (l *Ledger) DiskFailed(name, imageSnapshot string, snapshots int, cause error) {
	l.Record(Event{Kind: DiskFailed, Disk: name, ImageSnapshot: imageSnapshot, Detail: fmt.Sprintf("%v; %d snapshots use it", cause, snapshots)})
}

// Record counts and remembers the event, and passes it on to watchers. An event without a time gets the current time.
func (l *Ledger) Record(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch e.Kind {
	case Hit:
		count(l.counts.Hits, e.MatchedBy)
		l.counts.BytesNotPulled += uint64(max(e.Bytes, 0))
		l.remember(e)
	case Miss:
		count(l.counts.Misses, e.Reason)
		l.remember(e)
	case Failure:
		count(l.counts.Misses, ReasonError)
		l.remember(e)
	case DiskAttached, DiskDetached, DiskFailed, ImageImported, ImageWithdrawn, ImageNotImported:
		// only watchers want to know
	}
	for w := range l.watchers {
		w.offer(e)
	}
}

func count[K ~string](m map[K]uint64, key K) {
	if _, known := m[key]; !known && len(m) >= maxReasons {
		key = "other"
	}
	m[key]++
}

func (l *Ledger) remember(e Event) {
	if e.ChainID == "" {
		return
	}
	if at, ok := l.last[e.ChainID]; ok {
		at.Value = e
		l.order.MoveToFront(at)
		return
	}
	l.last[e.ChainID] = l.order.PushFront(e)
	if l.order.Len() > maxRemembered {
		if oldest, ok := l.order.Remove(l.order.Back()).(Event); ok {
			delete(l.last, oldest.ChainID)
		}
	}
}

// Counts returns the counts since the start; the caller owns the maps.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts
	c.Hits, c.Misses = maps.Clone(c.Hits), maps.Clone(c.Misses)
	return c
}

// Last returns the last answer about the layer, nil if there is none.
func (l *Ledger) Last(chainID digest.Digest) *Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.last[chainID]
	if !ok {
		return nil
	}
	if e, ok := at.Value.(Event); ok {
		return &e
	}
	return nil
}

// Watcher receives events until its context or the ledger ends.
type Watcher struct {
	// Events is closed at the end.
	Events <-chan Dispatch
	// events and dropped are guarded by the ledger's mutex.
	events  chan Dispatch
	dropped uint64
}

// Dispatch is an event, with the number of events before it that were lost because the watcher was slow.
type Dispatch struct {
	Event   Event
	Dropped uint64
}

// offer is called with the ledger's mutex held.
func (w *Watcher) offer(e Event) {
	select {
	case w.events <- Dispatch{Event: e, Dropped: w.dropped}:
		w.dropped = 0
	default:
		w.dropped++
	}
}

// Watch returns the events from now on until ctx ends or the ledger is closed.
func (l *Ledger) Watch(ctx context.Context) *Watcher {
	events := make(chan Dispatch, watchBuffer)
	w := &Watcher{Events: events, events: events}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		close(events)
		return w
	}
	l.watchers[w] = struct{}{}
	context.AfterFunc(ctx, func() { l.drop(w) })
	return w
}

func (l *Ledger) drop(w *Watcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.watchers[w]; ok {
		delete(l.watchers, w)
		close(w.events)
	}
}

// Close ends all watchers, so that a server that drains does not wait for them. Recording goes on.
func (l *Ledger) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for w := range l.watchers {
		delete(l.watchers, w)
		close(w.events)
	}
}
