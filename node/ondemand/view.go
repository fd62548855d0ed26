package ondemand

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/stage"
)

// view is what is known about the entries of the catalogs, together with the matcher's index of them.
type view struct {
	index *matcher.Index
	// drivers that this node has.
	drivers []string

	mu     sync.Mutex         // guards all below, and the fields of items that can change
	items  map[string]*item   // by ID
	byUUID map[string][]*item // by the UUID of the disk
	// touched has the items whose state the index was given.
	touched map[string]*item
	// credited has, by the UUID of a disk, the ID that was chosen last of those with this disk.
	credited map[string]string
}

func newView(drivers []string) *view {
	return &view{
		index: matcher.NewIndex(), drivers: drivers,
		items: map[string]*item{}, byUUID: map[string][]*item{}, touched: map[string]*item{},
		credited: map[string]string{},
	}
}

// put adds or replaces an entry. It returns the item whose disk the entry no longer stands for, nil if there is none.
func (v *view) put(e *catalog.Entry) (replaced *item, err error) {
	ix, identity, err := e.Parse()
	if err != nil {
		return nil, err
	}
	if !e.HasDisk() {
		return v.putWithoutDisk(e)
	}
	it := &item{id: e.ID, name: e.Name, source: e.Source, identity: identity}
	it.disk = it.diskName()
	if !slices.Contains(v.drivers, e.Source.Driver) {
		it.never = fmt.Sprintf("it has no driver %q", e.Source.Driver)
	}
	candidate := matcher.Candidate{Name: e.Name, ID: e.ID, Created: e.Created, State: stateOf(e), Expires: e.Expires, Unreachable: it.never}
	candidate.Images, candidate.Layers = matcher.Content(ix)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.index.Put(candidate); err != nil {
		return nil, err
	}
	replaced = v.take(e.ID)
	if replaced != nil && replaced.disk == it.disk {
		replaced = nil
	}
	v.items[it.id] = it
	v.byUUID[identity.UUID] = append(v.byUUID[identity.UUID], it)
	return replaced, nil
}

// putWithoutDisk adds an entry that cannot be used, so that an explanation can say why.
func (v *view) putWithoutDisk(e *catalog.Entry) (replaced *item, err error) {
	candidate := matcher.Candidate{Name: e.Name, ID: e.ID, Created: e.Created, State: stateOf(e), Expires: e.Expires}
	for _, ref := range e.Images {
		candidate.Images = append(candidate.Images, matcher.CandidateImage{Reference: ref})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.index.Put(candidate); err != nil {
		return nil, err
	}
	return v.take(e.ID), nil
}

// remove removes an entry. It returns the entry's item, nil if the entry had no disk or was not known.
func (v *view) remove(id string) *item {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.index.Remove(id)
	return v.take(id)
}

// take removes an item and returns it, nil if there is none. The caller holds mu.
func (v *view) take(id string) *item {
	it := v.items[id]
	if it == nil {
		return nil
	}
	delete(v.items, id)
	delete(v.touched, id)
	uuid := it.identity.UUID
	v.byUUID[uuid] = slices.DeleteFunc(v.byUUID[uuid], func(other *item) bool { return other == it })
	if len(v.byUUID[uuid]) == 0 {
		delete(v.byUUID, uuid)
	}
	if v.credited[uuid] == id {
		delete(v.credited, uuid)
	}
	return it
}

// item returns the item with this ID, nil if no entry with a disk has the ID.
func (v *view) item(id string) *item {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.items[id]
}

// stands reports whether an entry still stands for the item's disk.
func (v *view) stands(it *item) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.items[it.id]
	return now != nil && now.disk == it.disk
}

// ofDisk reports whether an entry has the disk with this UUID.
func (v *view) ofDisk(uuid string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.byUUID[uuid]) > 0
}

// attached notes how attaching an item's disk ended.
func (v *view) attached(it *item, now time.Time, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		it.succeeded()
		return
	}
	it.failed(now, err)
	if v.items[it.id] == it {
		v.touched[it.id] = it
	}
}

// refresh updates the index: which disks are attached here, and which cannot be.
func (v *view) refresh(disks []stage.DiskStatus, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	type told struct {
		attached    bool
		unreachable string
	}
	all := make(map[*item]told)
	for _, it := range v.touched {
		all[it] = told{}
	}
	for i := range disks {
		for _, it := range v.byUUID[disks[i].UUID] {
			attached, unreachable := viewOf(&disks[i])
			all[it] = told{attached, unreachable}
		}
	}
	for it, t := range all {
		if t.unreachable == "" && !t.attached {
			t.unreachable = it.waits(now)
		}
		if it.never != "" {
			t.unreachable = it.never
		}
		if t.attached != it.attached {
			it.attached = t.attached
			v.index.SetAttached(it.id, t.attached)
		}
		if t.unreachable != it.unreachable {
			it.unreachable = t.unreachable
			v.index.SetUnreachable(it.id, t.unreachable)
		}
		if t.attached || t.unreachable != "" {
			v.touched[it.id] = it
		} else {
			delete(v.touched, it.id)
		}
	}
}

// passOver keeps items from being chosen until consider has been called for them as often as passOver.
func (v *view) passOver(items []*item) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, it := range items {
		it.passedOver++
		if v.items[it.id] == it {
			v.touched[it.id] = it
		}
	}
}

// consider undoes one passOver.
func (v *view) consider(items []*item) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, it := range items {
		it.passedOver--
	}
}

// credit notes what was chosen, for use by owner.
func (v *view) credit(chosen []matcher.Choice) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, choice := range chosen {
		if it := v.items[choice.ID]; it != nil {
			v.credited[it.identity.UUID] = it.id
		}
	}
}

// owner finds the item that a disk belongs to, nil if no entry has the disk. sure is false if it is merely the first by
// name of several with the same disk.
func (v *view) owner(diskUUID string) (it *item, sure bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if it := v.items[v.credited[diskUUID]]; it != nil {
		return it, true
	}
	all := v.byUUID[diskUUID]
	if len(all) == 0 {
		return nil, false
	}
	return slices.MinFunc(all, func(a, b *item) int { return cmp.Compare(a.name, b.name) }), len(all) == 1
}
