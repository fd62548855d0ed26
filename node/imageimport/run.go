package imageimport

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/internal/backoff"
	"berth.dev/berth/internal/durable"
)

const (
	// firstRetry and lastRetry bound the wait between attempts for a disk, absentRetry that for a containerd that does
	// not answer, whose start pods wait for.
	firstRetry  = time.Second
	lastRetry   = time.Minute
	absentRetry = 2 * time.Second
	// lookEvery is how soon it is noticed that somebody removed an image, or uses one no more.
	lookEvery = time.Minute
	// withdrawTimeout bounds taking back the images of one disk: a garbage collection above all, which may wait for
	// others.
	withdrawTimeout = 5 * time.Minute
)

// Run compares disks and containerd at every change of the disks, and now and then, and makes good what differs, until
// ctx ends.
func (im *Importer) Run(ctx context.Context) {
	for {
		changed := im.node.Changed()
		if !im.sleep(ctx, changed, im.converge(ctx)) {
			return
		}
	}
}

// sleep until next, a change, a wake-up, or the end; next zero is no time at all.
func (im *Importer) sleep(ctx context.Context, changed <-chan struct{}, next time.Time) bool {
	var alarm <-chan time.Time
	if !next.IsZero() {
		timer := time.NewTimer(time.Until(next))
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-im.kick:
	case <-alarm:
	}
	return ctx.Err() == nil
}

// converge does what can be done now and says when to look again; never if that is zero.
func (im *Importer) converge(ctx context.Context) (next time.Time) {
	if err := im.lock(ctx); err != nil {
		return time.Time{}
	}
	defer im.unlock()
	disks := im.node.Disks()
	if !im.concerned(disks) {
		im.keepStates(nil)
		return time.Time{}
	}
	all, err := im.look(ctx)
	if err == nil {
		all, err = im.leave(ctx, all, disks)
	}
	im.cannotLook(ctx, err)
	if err != nil {
		return time.Now().Add(absentRetry)
	}
	im.keepStates(disks)
	next = time.Now().Add(lookEvery)
	for _, d := range disks {
		if d.Phase != Serving || !im.isWanted(d.Name) {
			continue
		}
		if at := im.arrive(ctx, d, all); !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	// What was registered just now is not in all yet; it is looked at next time.
	if at := im.giveUpIdle(ctx, all, disks); !at.IsZero() && at.Before(next) {
		next = at
	}
	return next
}

// concerned says whether there is anything to do in containerd at all: a node that registers nothing does not talk to
// it.
func (im *Importer) concerned(disks []Disk) bool {
	if slices.ContainsFunc(disks, func(d Disk) bool { return im.isWanted(d.Name) }) {
		return true
	}
	_, err := os.Lstat(im.Marker)
	return !errors.Is(err, os.ErrNotExist)
}

// cannotLook notes why containerd cannot be looked at. It is logged when it begins and when it ends: containerd may be
// away for long.
func (im *Importer) cannotLook(ctx context.Context, err error) {
	im.mu.Lock()
	was := im.err
	im.err = err
	im.mu.Unlock()
	switch {
	case err != nil && was == nil && ctx.Err() == nil:
		log.G(ctx).WithError(err).Warn("containerd cannot be told of images on disks, it is tried again")
	case err == nil && was != nil:
		log.G(ctx).Info("containerd can be told of images on disks again")
	}
}

// keepStates forgets the states of disks that are not there any more.
func (im *Importer) keepStates(disks []Disk) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for uuid, st := range im.states {
		if st.withheld == 0 && !slices.ContainsFunc(disks, func(d Disk) bool { return d.UUID == uuid }) {
			delete(im.states, uuid)
		}
	}
}

// leave takes back what is registered of disks that are not there, or whose images are not wanted any more, and returns
// what is there afterwards.
func (im *Importer) leave(ctx context.Context, all []found, disks []Disk) ([]found, error) {
	changed := false
	for _, d := range disks {
		// Images of other disks may rest on its layers, and can go over to their own.
		if d.Phase != Leaving || d.Holders == 0 {
			continue
		}
		free, err := im.free(ctx, d, all, disks)
		if err == nil && free {
			err = im.takeBack(ctx, d.UUID, all, disks)
			changed = true
		}
		if err != nil {
			return nil, err
		}
	}
	for _, f := range all {
		for uuid := range f.disks() {
			if im.stays(f.namespace, uuid, disks) {
				continue
			}
			if err := im.takeBack(ctx, uuid, []found{f}, disks); err != nil {
				return nil, err
			}
			changed = true
		}
	}
	if changed {
		var err error
		if all, err = im.look(ctx); err != nil {
			return nil, err
		}
	}
	wanted := slices.ContainsFunc(disks, func(d Disk) bool { return im.isWanted(d.Name) })
	if !wanted && !slices.ContainsFunc(all, func(f found) bool { return len(f.disks()) > 0 }) {
		return all, durable.Remove(im.Marker)
	}
	return all, nil
}

// stays says whether what is registered of a disk in a namespace stays.
func (im *Importer) stays(ns, uuid string, disks []Disk) bool {
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.UUID == uuid })
	return i >= 0 && disks[i].Phase != Leaving && im.isWanted(disks[i].Name) && slices.Contains(im.Namespaces, ns)
}

// takeBack withdraws, within bounds, and tells of it.
func (im *Importer) takeBack(ctx context.Context, uuid string, all []found, disks []Disk) error {
	bounded, cancel := context.WithTimeout(ctx, withdrawTimeout)
	defer cancel()
	if err := im.withdraw(bounded, uuid, all, disks); err != nil {
		return err
	}
	name := uuid
	if i := slices.IndexFunc(disks, func(d Disk) bool { return d.UUID == uuid }); i >= 0 {
		name = disks[i].Name
	}
	for _, f := range all {
		for _, img := range f.images {
			if ref := img.Labels[labelImage]; owned(img) && img.Labels[labelDisk] == uuid && ref != "" {
				im.Observer.Image(ctx, name, Image{Reference: ref, Namespace: f.namespace, Result: Withdrawn, Reason: "its disk leaves, or is not to be registered"})
			}
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if st := im.states[uuid]; st != nil {
		st.images, st.freeSince = nil, time.Time{}
	}
	return nil
}

// arrive registers the images of a disk where that is not done, and says when to try again.
func (im *Importer) arrive(ctx context.Context, d Disk, all []found) (again time.Time) {
	st := im.state(d.UUID)
	if st.index != d.Index {
		st.index, st.entries = d.Index, im.choose(ctx, d.Index)
	}
	if im.anyWithheld() {
		return time.Time{} // whoever withholds wakes us
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
		case !slices.Contains(im.Namespaces, f.namespace):
			continue
		case f.done[d.UUID]:
			now = im.seen(st.entries, before, f, d.UUID)
			if before == nil {
				before = now // seen for the first time, but nothing new
			}
			if f.begun[d.UUID] { // a crash came between
				errs = append(errs, im.release(namespaces.WithNamespace(ctx, f.namespace), d.UUID))
			}
		case time.Now().Before(st.retryAt):
			errs = append(errs, st.err)
		default:
			err := im.leaveTrace()
			if err == nil {
				now, err = im.register(ctx, f.namespace, d, st.entries)
			}
			errs = append(errs, err)
			registered = true
		}
		for _, img := range now {
			if !slices.Contains(before, img) {
				im.Observer.Image(ctx, d.Name, img)
			}
		}
		list = append(list, now...)
	}
	again = im.attempted(ctx, d, st, list, errors.Join(errs...))
	if registered && again.IsZero() {
		again = time.Now() // the disk may be used by nothing else
	}
	return again
}

// attempted notes how far the images of a disk have come.
func (im *Importer) attempted(ctx context.Context, d Disk, st *state, list []Image, err error) (again time.Time) {
	now := time.Now()
	im.mu.Lock()
	fresh := err != nil && !now.Before(st.retryAt)
	st.images, st.err = list, err
	switch {
	case err == nil:
		st.failures, st.retryAt = 0, time.Time{}
	case fresh && lost(err):
		st.retryAt = now.Add(absentRetry)
	case fresh:
		st.retryAt = now.Add(backoff.Doubling{First: firstRetry, Most: lastRetry}.After(st.failures))
		st.failures++
	}
	again = st.retryAt
	im.mu.Unlock()
	if fresh && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("disk", d.Name).Warn("not all images of the disk are registered, it is tried again")
	}
	return again
}

// imagesIn a namespace; nil if there are none.
func imagesIn(list []Image, ns string) []Image {
	var in []Image
	for _, img := range list {
		if img.Namespace == ns {
			in = append(in, img)
		}
	}
	return in
}

// seen is how the images of a disk that were registered in a namespace are now.
func (im *Importer) seen(entries []entry, before []Image, f found, uuid string) []Image {
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

func (im *Importer) anyWithheld() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, st := range im.states {
		if st.withheld > 0 {
			return true
		}
	}
	return false
}

// Withdraw makes way for detaching a disk: if nothing uses it but registered images, those are taken back. Until
// release is called no images are registered; then the disk's are again, if it is still there. A containerd that does
// not answer is errdefs.ErrUnavailable.
func (im *Importer) Withdraw(ctx context.Context, name string) (release func(), err error) {
	nothing := func() {}
	if err := im.lock(ctx); err != nil {
		return nothing, err
	}
	defer im.unlock()
	disks := im.node.Disks()
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.Name == name })
	if i < 0 || disks[i].UUID == "" || disks[i].Holders == 0 || !im.concerned(disks) {
		return nothing, nil // what is left in containerd goes when the disk is gone
	}
	d := disks[i]
	all, err := im.look(ctx)
	if err != nil {
		if lost(err) {
			err = fmt.Errorf("containerd, which may have images of the disk, does not answer, start it first: %w: %w", err, errdefs.ErrUnavailable)
		}
		return nothing, fmt.Errorf("take back images of disk %s: %w", name, err)
	}
	free, err := im.free(ctx, d, all, disks)
	if err == nil && !free {
		// What was just removed may only have to be collected.
		err = im.collect(namespaces.WithNamespace(ctx, im.Namespaces[0]), d.UUID)
		if err == nil {
			free, err = im.free(ctx, d, all, disks)
		}
	}
	if err != nil {
		return nothing, err
	}
	if !free {
		return nothing, nil // whoever detaches it finds out how many use it
	}
	st := im.state(d.UUID)
	im.withhold(st, 1)
	release = func() {
		im.withhold(st, -1)
		im.wake()
	}
	if err := im.takeBack(ctx, d.UUID, all, disks); err != nil {
		release()
		return nothing, fmt.Errorf("take back images of disk %s: %w", name, err)
	}
	return release, nil
}

func (im *Importer) withhold(st *state, n int) {
	im.mu.Lock()
	defer im.mu.Unlock()
	st.withheld += n
}
