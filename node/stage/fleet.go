package stage

import (
	"time"
)

// fleet is all disks and what can be found on them. Stager.mu guards it.
type fleet struct {
	byName map[string]*disk
	// byUUID is the one disk that provides an identity, up or not.
	byUUID map[string]*disk
	// serving has the layers that are handed out, withheld those of disks that drain or failed.
	serving, withheld layerTable
	holds             *holds
	// change is closed and replaced when a disk changes.
	change chan struct{}
}

func newFleet() fleet {
	return fleet{
		byName:   make(map[string]*disk),
		byUUID:   make(map[string]*disk),
		serving:  newLayerTable(),
		withheld: newLayerTable(),
		holds:    newHolds(),
		change:   make(chan struct{}),
	}
}

func (f *fleet) changed() {
	close(f.change)
	f.change = make(chan struct{})
}

func (f *fleet) add(d *disk) {
	f.byName[d.rec.Spec.Name] = d
	if uuid := d.rec.Identity.UUID; uuid != "" && (f.byUUID[uuid] == nil || f.byUUID[uuid].rec.Goal == goalGone) {
		f.byUUID[uuid] = d
	}
	f.changed()
}

// remove the disk from all that is known.
func (f *fleet) remove(d *disk) {
	d.removed = true
	d.up = false
	d.endVisits()
	d.pendingSince = time.Time{}
	delete(f.byName, d.rec.Spec.Name)
	f.updateTables(d)
	if uuid := d.rec.Identity.UUID; f.byUUID[uuid] == d {
		f.reassign(d, uuid)
	}
}

// reassign makes another disk the provider of the identity, if one has it.
func (f *fleet) reassign(d *disk, uuid string) {
	delete(f.byUUID, uuid)
	for _, other := range f.byName {
		if other != d && other.rec.Identity.UUID == uuid && (f.byUUID[uuid] == nil || other.rec.Spec.Name < f.byUUID[uuid].rec.Spec.Name) {
			f.byUUID[uuid] = other
		}
	}
	if f.byUUID[uuid] == nil {
		f.holds.remove(uuid)
	}
}

// stopServing hands out no more layers of the disk and ends all visits.
func (f *fleet) stopServing(d *disk) {
	d.up = false
	d.endVisits()
	f.updateTables(d)
}

// updateTables puts the layers of a disk into the table that its state asks for.
func (f *fleet) updateTables(d *disk) {
	if d.lookup != nil {
		f.serving.remove(d)
		f.withheld.remove(d)
		switch {
		case d.removed || d.rec.Goal == goalGone:
		case d.up && !d.rec.Draining:
			f.serving.add(d)
		default:
			f.withheld.add(d)
		}
	}
	f.changed()
}

// claim makes d the provider of the identity, unless another disk that has not failed is it.
func (f *fleet) claim(d *disk, uuid string) (other *disk, ok bool) {
	other = f.byUUID[uuid]
	if other != nil && other != d && (other.up || other.err == nil) {
		return other, false
	}
	if old := d.rec.Identity.UUID; old != uuid && f.byUUID[old] == d {
		delete(f.byUUID, old)
	}
	f.byUUID[uuid] = d
	return nil, true
}

// unclaim takes back a claim that came to nothing, for the disk that had the identity before.
func (f *fleet) unclaim(d *disk, uuid string) {
	if f.byUUID[uuid] != d {
		return
	}
	f.reassign(d, uuid)
	if f.byUUID[uuid] == nil && d.rec.Identity.UUID == uuid && !d.removed {
		f.byUUID[uuid] = d
	}
}

// provides says whether holds of the disk's identity are holds of this disk.
func (f *fleet) provides(d *disk) bool {
	return d.rec.Identity.UUID != "" && f.byUUID[d.rec.Identity.UUID] == d
}

func (f *fleet) holders(d *disk) int {
	if !f.provides(d) {
		return 0
	}
	n, _, _ := f.holds.of(d.rec.Identity.UUID)
	return n
}

// idleSince is when the disk was last held, or came up if that was later.
func (f *fleet) idleSince(d *disk) time.Time {
	_, _, since := f.holds.of(d.rec.Identity.UUID)
	if since.Before(d.upSince) {
		return d.upSince
	}
	return since
}

func (f *fleet) anyPending() bool {
	for _, d := range f.byName {
		if !d.pendingSince.IsZero() {
			return true
		}
	}
	return false
}

// lastPending is when the disk that set out last of those still on their way did so.
func (f *fleet) lastPending() (since time.Time) {
	for _, d := range f.byName {
		if d.pendingSince.After(since) {
			since = d.pendingSince
		}
	}
	return since
}

// freeNumber is the lowest that no disk has and that is not in taken.
func (f *fleet) freeNumber(taken map[int]bool) int {
	used := make(map[int]bool, len(f.byName))
	for _, d := range f.byName {
		used[d.rec.Number] = true
	}
	n := 0
	for used[n] || taken[n] {
		n++
	}
	return n
}

func (f *fleet) status(d *disk, root string) DiskStatus {
	st := DiskStatus{
		Name:             d.rec.Spec.Name,
		Driver:           d.rec.Spec.Driver,
		VolumeID:         d.rec.VolumeID,
		VolumeSnapshotID: d.rec.Spec.VolumeSnapshotID,
		UUID:             d.rec.Identity.UUID,
		IndexDigest:      d.rec.Identity.IndexDigest,
		Serving:          d.up && !d.rec.Draining,
		Device:           d.device,
		Place:            d.rec.target(root),
		SizeBytes:        d.sizeBytes,
		Since:            d.rec.Since,
		LastError:        d.err,
		Keep:             d.rec.Spec.Keep,

		ImageSnapshot: d.rec.Spec.ImageSnapshot,
	}
	if st.VolumeID == "" {
		st.VolumeID = d.rec.Spec.VolumeID
	}
	if d.up {
		st.MountPoint = d.rec.target(root)
	}
	if d.lookup != nil {
		st.Layers = len(d.lookup.Index().Layers)
	}
	if f.provides(d) {
		st.Holders, st.LayersInUse, _ = f.holds.of(st.UUID)
	}
	if d.up && st.Holders == 0 {
		st.IdleSince = f.idleSince(d)
	}
	st.State = d.state(st.Holders)
	return st
}
