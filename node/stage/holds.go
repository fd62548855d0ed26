package stage

import "time"

// holds counts who uses which layer. They are kept by the disk's UUID and not by the disk, because a disk may come
// back, or its place be taken by a copy. All methods but idleFrom take constant time.
type holds struct {
	byHolder map[string]Hold
	byUUID   map[string]*usage
}

type usage struct {
	layers map[int]int
	total  int
	// idleSince is when the last holder left.
	idleSince time.Time
}

func newHolds() *holds {
	return &holds{byHolder: make(map[string]Hold), byUUID: make(map[string]*usage)}
}

// put replaces what the holder held.
func (h *holds) put(hold Hold) {
	h.release(hold.Holder)
	h.byHolder[hold.Holder] = hold
	u := h.byUUID[hold.DiskUUID]
	if u == nil {
		u = &usage{layers: make(map[int]int)}
		h.byUUID[hold.DiskUUID] = u
	}
	u.layers[hold.LayerNumber]++
	u.total++
}

// release ends a hold. It says whether that was the last one of the disk.
func (h *holds) release(holder string) (last bool) {
	hold, ok := h.byHolder[holder]
	if !ok {
		return false
	}
	delete(h.byHolder, holder)
	u := h.byUUID[hold.DiskUUID]
	u.total--
	u.layers[hold.LayerNumber]--
	if u.layers[hold.LayerNumber] == 0 {
		delete(u.layers, hold.LayerNumber)
	}
	if u.total == 0 {
		u.idleSince = time.Now()
	}
	return u.total == 0
}

func (h *holds) of(uuid string) (holders, layers int, idleSince time.Time) {
	u := h.byUUID[uuid]
	if u == nil {
		return 0, 0, time.Time{}
	}
	return u.total, len(u.layers), u.idleSince
}

// idleFrom lets the idle time of all that is idle begin at t.
func (h *holds) idleFrom(t time.Time) {
	for _, u := range h.byUUID {
		u.idleSince = t
	}
}

// remove what was known of a disk that nobody holds.
func (h *holds) remove(uuid string) {
	if u := h.byUUID[uuid]; u != nil && u.total == 0 {
		delete(h.byUUID, uuid)
	}
}
