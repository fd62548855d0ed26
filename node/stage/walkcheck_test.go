package stage

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
)

// diskAt is the disk whose journal says that it is mounted on a directory.
func (n *walker) diskAt(target string) (rec record, provides, ok bool) {
	n.stager.mu.Lock()
	defer n.stager.mu.Unlock()
	for _, d := range n.stager.fleet.byName {
		if d.rec.target(n.stager.root) == target {
			return d.rec, n.stager.fleet.provides(d), true
		}
	}
	return record{}, false, false
}

// mounting is told of every mount of ours before it is made.
func (n *walker) mounting(m mounted) {
	rec, _, ok := n.diskAt(m.Target)
	switch {
	case !ok:
		n.Break("%s is mounted on %s, which no disk has", m.Source, m.Target)
	case rec.Step != StateMounting:
		n.Break("%s is mounted on %s for disk %s, which is %s by the journal", m.Source, m.Target, rec.Spec.Name, rec.Step)
	case n.m.ids[m.label].Check(rec.Spec.Expect) != nil:
		n.Break("disk %s is mounted as disk %s", m.label, rec.Spec.Name)
	default:
		n.Note("  mount %s as %s on %s", m.Source, rec.Spec.Name, m.Target)
	}
}

// unmounting is told of every mount before it is taken away.
func (n *walker) unmounting(m mounted) {
	if m.foreign {
		n.Break("the mount of others on %s is taken away", m.Target)
		return
	}
	rec, provides, ok := n.diskAt(m.Target)
	n.Note("  unmount %s from %s", m.label, m.Target)
	if !ok || !provides {
		return // a copy serves the holders
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.holds {
		if h.DiskUUID != n.m.ids[m.label].UUID {
			continue
		}
		if n.well(m) {
			n.Break("%s is unmounted while %s holds layer %d of disk %s", m.Target, h.Holder, h.LayerNumber, rec.Spec.Name)
		}
	}
}

// well says that the device of a mount is there and answers.
func (n *walker) well(m mounted) bool {
	name, _, _ := strings.Cut(m.Source, "/")
	return n.m.drivers[name].Answers(m.content)
}

// checkAll looks at what must hold at all times.
func (n *walker) checkAll() {
	n.checkHolds()
	n.stager.mu.Lock()
	records := make([]record, 0, len(n.stager.fleet.byName))
	for _, d := range n.stager.fleet.byName {
		records = append(records, d.rec)
	}
	n.stager.mu.Unlock()
	for driver, fake := range n.m.drivers {
		all := n.ofNode(fake.Inventory())
		for _, id := range all.Attached {
			if !n.foreign[driver+"/"+id] && !slices.ContainsFunc(records, func(r record) bool {
				return r.Spec.Driver == driver && r.AttachBegun && r.VolumeID == id
			}) {
				n.Break("volume %s/%s is attached, and the journal does not know", driver, id)
			}
		}
		for _, v := range all.Volumes {
			if strings.HasPrefix(v.Name, "berth-") && v.Name != "berth-other" && !slices.ContainsFunc(records, func(r record) bool {
				return r.Spec.Driver == driver && r.VolumeName == v.Name
			}) {
				n.Break("volume %s/%s (%s) is there, and the journal does not know", driver, v.ID, v.Name)
			}
		}
		if n.specs != nil && (len(all.Volumes) < sources+otherVolumes || len(all.Snapshots) < sources) {
			n.Break("%s has %d volumes and %d snapshots: some that are not ours are gone", driver, len(all.Volumes), len(all.Snapshots))
		}
		for id := range n.foreign {
			if name, id, _ := strings.Cut(id, "/"); name == driver && !slices.Contains(all.Attached, id) {
				n.Break("the attachment of others, %s/%s, is gone", driver, id)
			}
		}
	}
}

// ofNode leaves out what the builds of image snapshots have in the storage.
func (n *walker) ofNode(all blockdevtest.Inventory) blockdevtest.Inventory {
	if n.builds == "" {
		return all
	}
	built := make(map[string]bool)
	for _, v := range all.Volumes {
		built[v.ID] = strings.HasPrefix(v.Name, n.builds)
	}
	all.Volumes = slices.DeleteFunc(all.Volumes, func(v blockdev.Volume) bool { return built[v.ID] })
	all.Attached = slices.DeleteFunc(all.Attached, func(id string) bool { return built[id] })
	return all
}

// checkHolds wants every hold to be known, and what is said of it to be true.
func (n *walker) checkHolds() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for holder, hold := range n.holds {
		n.stager.mu.Lock()
		got := n.stager.fleet.holds.byHolder[holder]
		known := n.stager.fleet.byUUID[hold.DiskUUID] != nil
		n.stager.mu.Unlock()
		if got != hold {
			n.Break("%s holds %+v, the stage has %+v", holder, hold, got)
		}
		if !known {
			n.Break("disk %s, which %s holds, is forgotten", hold.DiskUUID, holder)
		}
		dir, err := n.stager.Layers.LayerDir(hold.DiskUUID, hold.LayerNumber)
		if err != nil {
			continue // out of service
		}
		if at, ok := n.m.top(dir); !ok || at.foreign || n.m.ids[at.label].UUID != hold.DiskUUID {
			n.Break("layer %d of disk %s is said to be in %s, on which %q is", hold.LayerNumber, hold.DiskUUID, dir, at.label)
		}
	}
}

// behave has the clouds behave, and all devices that are there be well.
func (n *walker) behave() {
	n.proc.mu.Lock()
	n.proc.dieAt = 0
	n.proc.mu.Unlock()
	n.wakeDevices()
}

// converge wants every disk that can serve to do so some time after the clouds behave again.
func (n *walker) converge() {
	n.Helper()
	n.Note("the clouds behave again")
	n.behave()
	for range 6 {
		time.Sleep(time.Hour)
		n.wakeDevices() // an attachment may have been under way
		n.look()
	}
	n.stager.mu.Lock()
	defer n.stager.mu.Unlock()
	for _, d := range n.stager.fleet.byName {
		switch {
		case d.up:
		case d.rec.Goal == goalGone:
			n.Errorf("disk %s should have left: %s, %v", d.rec.Spec.Name, d.rec.Step, d.err)
		case !errors.Is(d.err, blockdev.ErrAttachLimit) && !errdefs.IsAlreadyExists(d.err):
			n.Errorf("disk %s should serve: %s, %v", d.rec.Spec.Name, d.rec.Step, d.err)
		}
	}
}

// giveUp lets everything go and wants nothing to be left.
func (n *walker) giveUp() {
	n.Helper()
	n.Note("all is given up")
	n.mu.Lock()
	for holder := range n.holds {
		delete(n.holds, holder)
		_ = n.stager.Layers.Release(n.Context(), holder)
	}
	n.mu.Unlock()
	for _, d := range n.stager.Disks() {
		if _, err := n.stager.Unstage(n.Context(), d.Name, UnstageOptions{Drain: true}); err != nil && !errdefs.IsNotFound(err) {
			n.Errorf("unstage %s: %v", d.Name, err)
		}
	}
	synctest.Wait()
	n.checkAll()
	n.Stand()
	if left := n.left(); len(left) > 0 {
		n.Errorf("left: %s", strings.Join(left, "; "))
	}
}

func (n *walker) left() (left []string) {
	for _, d := range n.stager.Disks() {
		left = append(left, fmt.Sprintf("disk %s, %s: %v", d.Name, d.State, d.LastError))
	}
	records, bad, err := n.stager.journal.load()
	if err != nil || len(bad) > 0 {
		left = append(left, fmt.Sprint("journal: ", err, bad))
	}
	for _, r := range records {
		left = append(left, "record "+r.Spec.Name)
	}
	for driver, fake := range n.m.drivers {
		fake.Misbehave(blockdevtest.Misbehaviour{})
		all := fake.Inventory()
		for _, id := range all.Attached {
			if !n.foreign[driver+"/"+id] {
				left = append(left, "attached "+id)
			}
		}
		if len(all.Volumes) != sources+otherVolumes || len(all.Snapshots) != sources {
			left = append(left, fmt.Sprintf("%s: %+v", driver, all))
		}
	}
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	for _, m := range n.m.mounts {
		if !m.foreign {
			left = append(left, "mount "+m.Target)
		}
	}
	return left
}
