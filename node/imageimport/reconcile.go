package imageimport

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
)

const (
	// lookEvery is how soon it is noticed that somebody removed an image or stopped using one.
	lookEvery = time.Minute
	// withdrawTimeout bounds taking back the images of one disk: a garbage collection above all, which may wait for
	// others.
	withdrawTimeout = 5 * time.Minute
)

// reconciler compares the disks with containerd and corrects the differences. One goroutine at a time uses it.
type reconciler struct {
	node        Node
	observer    Observer
	idleTimeout time.Duration
	chooser     chooser
	inventory   inventory
	registrar   *registrar
	withdrawer  *withdrawer
	states      *states
}

// converge does what can be done now and returns when to look again; a zero time means never.
func (c *reconciler) converge(ctx context.Context) (next time.Time) {
	disks := c.node.Disks()
	if !c.concerned(disks) {
		c.states.keep(nil)
		return time.Time{}
	}
	all, err := c.inventory.look(ctx)
	if err == nil {
		all, err = c.leave(ctx, all, disks)
	}
	c.states.cannotLook(ctx, err)
	if err != nil {
		return time.Now().Add(absentRetry)
	}
	c.states.keep(disks)
	next = time.Now().Add(lookEvery)
	for _, d := range disks {
		if d.Phase != Serving || !c.states.isWanted(d.Name) {
			continue
		}
		if at := c.arrive(ctx, d, all); !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	// What was registered just now is not in all yet; the next look includes it.
	if at := c.giveUpIdle(ctx, all, disks); !at.IsZero() && at.Before(next) {
		next = at
	}
	return next
}

// concerned reports whether there is anything to do in containerd: a node that registers nothing does not talk to it.
func (c *reconciler) concerned(disks []Disk) bool {
	if slices.ContainsFunc(disks, func(d Disk) bool { return c.states.isWanted(d.Name) }) {
		return true
	}
	return c.inventory.marked()
}

// leave takes back what is registered of disks that are gone, or whose images are no longer wanted. It returns what is
// there afterwards.
func (c *reconciler) leave(ctx context.Context, all []found, disks []Disk) ([]found, error) {
	changed := false
	for _, d := range disks {
		// Images of other disks may rest on this disk's layers, and can move to their own disk's.
		if d.Phase != Leaving || d.Holders == 0 {
			continue
		}
		free, err := c.withdrawer.free(ctx, d, all, disks)
		if err == nil && free {
			err = c.takeBack(ctx, d.UUID, all, disks)
			changed = true
		}
		if err != nil {
			return nil, err
		}
	}
	for _, f := range all {
		for uuid := range f.disks() {
			if c.stays(f.namespace, uuid, disks) {
				continue
			}
			if err := c.takeBack(ctx, uuid, []found{f}, disks); err != nil {
				return nil, err
			}
			changed = true
		}
	}
	if changed {
		var err error
		if all, err = c.inventory.look(ctx); err != nil {
			return nil, err
		}
	}
	wanted := slices.ContainsFunc(disks, func(d Disk) bool { return c.states.isWanted(d.Name) })
	if !wanted && !slices.ContainsFunc(all, func(f found) bool { return len(f.disks()) > 0 }) {
		return all, c.inventory.unmark()
	}
	return all, nil
}

// stays reports whether what is registered of a disk in a namespace stays.
func (c *reconciler) stays(ns, uuid string, disks []Disk) bool {
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.UUID == uuid })
	return i >= 0 && disks[i].Phase != Leaving && c.states.isWanted(disks[i].Name) && slices.Contains(c.inventory.namespaces, ns)
}

// takeBack withdraws within withdrawTimeout, and notifies the observer.
func (c *reconciler) takeBack(ctx context.Context, uuid string, all []found, disks []Disk) error {
	bounded, cancel := context.WithTimeout(ctx, withdrawTimeout)
	defer cancel()
	if err := c.withdrawer.withdraw(bounded, uuid, all, disks); err != nil {
		return err
	}
	name := uuid
	if i := slices.IndexFunc(disks, func(d Disk) bool { return d.UUID == uuid }); i >= 0 {
		name = disks[i].Name
	}
	for _, f := range all {
		for _, img := range f.images {
			if ref := img.Labels[labelImage]; owned(img) && img.Labels[labelDisk] == uuid && ref != "" {
				c.observer.Image(ctx, name, Image{Reference: ref, Namespace: f.namespace, Result: Withdrawn, Reason: "its disk leaves, or is not to be registered"})
			}
		}
	}
	c.states.takenBack(uuid)
	return nil
}

// arrive registers the images of a disk in the namespaces where this is not done yet, and returns when to try again.
func (c *reconciler) arrive(ctx context.Context, d Disk, all []found) (again time.Time) {
	st := c.states.of(d.UUID)
	if st.index != d.Index {
		st.index, st.entries = d.Index, c.chooser.choose(ctx, d.Index)
	}
	if c.states.anyWithheld() {
		return time.Time{} // whoever withholds it wakes Run
	}
	var (
		list       []Image
		errs       []error
		registered bool
	)
	for _, f := range all {
		before := imagesIn(st.images, f.namespace)
		now := before
		switch {
		case !slices.Contains(c.inventory.namespaces, f.namespace):
			continue
		case f.done[d.UUID]:
			now = seen(st.entries, before, f, d.UUID)
			if before == nil {
				before = now // seen for the first time, but nothing new
			}
			if f.begun[d.UUID] { // a crash came between
				errs = append(errs, c.registrar.release(namespaces.WithNamespace(ctx, f.namespace), d.UUID))
			}
		case time.Now().Before(st.retryAt):
			errs = append(errs, st.err)
		default:
			err := c.inventory.leaveMark()
			if err == nil {
				now, err = c.registrar.register(ctx, f.namespace, d, st.entries)
			}
			errs = append(errs, err)
			registered = true
		}
		for _, img := range now {
			if !slices.Contains(before, img) {
				c.observer.Image(ctx, d.Name, img)
			}
		}
		list = append(list, now...)
	}
	again = c.states.attempted(ctx, d, st, list, errors.Join(errs...))
	if registered && again.IsZero() {
		again = time.Now() // the disk may be used by nothing else
	}
	return again
}

// imagesIn returns the images in a namespace, nil if there are none.
func imagesIn(list []Image, ns string) []Image {
	var in []Image
	for _, img := range list {
		if img.Namespace == ns {
			in = append(in, img)
		}
	}
	return in
}

// seen returns the current state of a disk's images that were registered in a namespace.
func seen(entries []entry, before []Image, f found, uuid string) []Image {
	list := make([]Image, 0, len(entries))
	for _, e := range entries {
		img := Image{Reference: e.Reference, Namespace: f.namespace, Result: Registered}
		was := Result("")
		if i := slices.IndexFunc(before, func(b Image) bool { return b.Reference == e.Reference }); i >= 0 {
			was = before[i].Result
		}
		record, ok := f.record(e.name)
		switch {
		case e.refusal != nil:
			img.Result, img.Reason = Refused, e.refusal.Error()
		case !ok:
			img.Result, img.Reason = Removed, "somebody has removed it; it is registered again when the disk is attached anew"
		case vacant(record, uuid) == nil:
		case was == Registered || was == Removed:
			img.Result, img.Reason = Removed, "somebody has registered another image of this name in its place, and that stays"
		default:
			img.Result, img.Reason = Left, vacant(record, uuid).Error()
		}
		list = append(list, img)
	}
	return list
}
