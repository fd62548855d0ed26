package ondemand

import (
	"container/list"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/matcher"
)

// Record is one choice for a pull, and how attaching its disks ended.
type Record struct {
	Time     time.Time
	ImageRef string
	// ChainID is that of the missing layer.
	ChainID  digest.Digest
	Decision matcher.Decision
	// Disks are those that were being attached because of the choice. Waited is how long the pull waited for all of
	// them.
	Disks  []DiskResult
	Waited time.Duration
}

// DiskResult is how attaching one disk ended, as far as the pull waited for it.
type DiskResult struct {
	// Name and ID are those of the image snapshot, Disk is the name of its disk on this node.
	Name, ID, Disk string
	Result         Result
	// Err is nil unless Result is ResultFailed or ResultNoRoom.
	Err error
}

// maxRecords bounds the images whose last choice is remembered; a node pulls some hundred different images.
const maxRecords = 1024

// records keeps the last record of each image.
type records struct {
	mu    *sync.Mutex
	order *list.List // of Record, the newest in front
	byKey map[string]*list.Element
}

func newRecords() records {
	return records{mu: new(sync.Mutex), order: list.New(), byKey: map[string]*list.Element{}}
}

// key returns the key of a record: the image, or the layer if containerd does not say which image it pulls.
func (r *Record) key() string {
	if r.ImageRef == "" || len(r.ImageRef) > matcher.MaxReferenceBytes {
		return r.ChainID.String()
	}
	return r.ImageRef
}

func (r *records) put(rec Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.byKey[rec.key()]; ok {
		at.Value = rec
		r.order.MoveToFront(at)
		return
	}
	r.byKey[rec.key()] = r.order.PushFront(rec)
	if r.order.Len() > maxRecords {
		if oldest, ok := r.order.Remove(r.order.Back()).(Record); ok {
			delete(r.byKey, oldest.key())
		}
	}
}

func (r *records) get(key string) (Record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.byKey[key]
	if !ok {
		return Record{}, false
	}
	rec, ok := at.Value.(Record)
	return rec, ok
}
