package imageimport

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"berth.dev/berth/internal/durable"
)

// lookTimeout bounds listing what is in containerd.
const lookTimeout = 30 * time.Second

// found is what is in a namespace of containerd.
type found struct {
	namespace string
	// done are the UUIDs of disks whose images are registered, begun those of disks with whose images that was begun.
	done, begun map[string]bool
	images      []images.Image
}

// ours says whether something of the disk is there.
func (f found) ours(uuid string) bool {
	return f.done[uuid] || f.begun[uuid] || slices.ContainsFunc(f.images, func(img images.Image) bool {
		return img.Labels[labelDisk] == uuid && (owned(img) || moved(img))
	})
}

// disks are the UUIDs of all disks of which something is there.
func (f found) disks() map[string]bool {
	all := map[string]bool{}
	for uuid := range f.done {
		all[uuid] = true
	}
	for uuid := range f.begun {
		all[uuid] = true
	}
	for _, img := range f.images {
		if owned(img) || moved(img) {
			all[img.Labels[labelDisk]] = true
		}
	}
	return all
}

// record of a name, if there is one.
func (f found) record(name string) (images.Image, bool) {
	i := slices.IndexFunc(f.images, func(img images.Image) bool { return img.Name == name })
	if i < 0 {
		return images.Image{}, false
	}
	return f.images[i], true
}

// marker is what the file Config.Marker holds.
type marker struct {
	Namespaces []string `json:"namespaces"`
}

// look lists what is in the namespaces that are configured, and in those in which something was registered before.
func (im *Importer) look(ctx context.Context) ([]found, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	was, _, err := durable.Read[marker](im.Marker)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(im.Namespaces, was.Namespaces)
	slices.Sort(all)
	var list []found
	for _, ns := range slices.Compact(all) {
		f, err := im.lookIn(namespaces.WithNamespace(ctx, ns), ns)
		if err != nil {
			return nil, fmt.Errorf("look into namespace %s of containerd: %w", ns, err)
		}
		list = append(list, f)
	}
	return list, nil
}

func (im *Importer) lookIn(ctx context.Context, ns string) (found, error) {
	f := found{namespace: ns, done: map[string]bool{}, begun: map[string]bool{}}
	all, err := im.ctr.Leases.List(ctx, "labels."+strconv.Quote(labelDisk))
	if err != nil {
		return f, err
	}
	for _, l := range all {
		switch uuid := l.Labels[labelDisk]; l.ID {
		case doneLease(uuid):
			f.done[uuid] = true
		case workLease(uuid):
			f.begun[uuid] = true
		}
	}
	f.images, err = im.ctr.Images.List(ctx)
	return f, err
}

// leaveTrace notes before anything is registered in which namespaces that is.
func (im *Importer) leaveTrace() error {
	was, _, err := durable.Read[marker](im.Marker)
	if err != nil {
		return err
	}
	all := slices.Concat(im.Namespaces, was.Namespaces)
	slices.Sort(all)
	all = slices.Compact(all)
	if slices.Equal(all, was.Namespaces) {
		return nil
	}
	return durable.Write(im.Marker, marker{all})
}

// withdraw takes back what was registered of a disk, and the images of other disks that rest on its layers or whose
// names it has: those are registered again from where they are, once the disk has left. The mark goes first, so that a
// disk that does not leave after all is registered again.
func (im *Importer) withdraw(ctx context.Context, uuid string, all []found, disks []Disk) error {
	uses, err := im.node.Uses(ctx)
	if err != nil {
		return fmt.Errorf("look what uses disk %s: %w", uuid, err)
	}
	for _, f := range all {
		ctx := namespaces.WithNamespace(ctx, f.namespace)
		drop := im.dropped(ctx, f, uuid, uses[uuid], disks)
		if len(drop.marks) == 0 && len(drop.records) == 0 {
			continue
		}
		for _, other := range drop.marks {
			err := im.ctr.Leases.Delete(ctx, leases.Lease{ID: doneLease(other)})
			if err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("delete mark of disk %s: %w", other, err)
			}
		}
		im.crash("unmarked")
		for _, img := range drop.records {
			if err := im.drop(ctx, img); err != nil {
				return err
			}
			im.crash("dropped")
		}
		if err := im.collect(ctx, uuid); err != nil {
			return err
		}
		im.crash("collected")
	}
	return nil
}

// dropping is what has to go for a disk to be free.
type dropping struct {
	// marks are the disks whose images have to be registered again, if they are still there.
	marks   []string
	records []images.Image
}

func (im *Importer) dropped(ctx context.Context, f found, uuid string, use Use, disks []Disk) dropping {
	var d dropping
	if f.ours(uuid) {
		d.marks = append(d.marks, uuid)
	}
	resting := map[string]bool{} // chains of images that have a layer on the disk
	for _, other := range disks {
		if other.UUID == uuid || other.Index == nil || !f.ours(other.UUID) {
			continue
		}
		again := false
		for _, e := range im.choose(ctx, other.Index) {
			if e.refusal != nil {
				continue
			}
			if rests(other.Index, e.ChainID, use.Chains) {
				resting[e.ChainID.String()] = true
				again = true
			}
			if img, ok := f.record(e.name); ok && owned(img) && img.Labels[labelDisk] == uuid {
				again = true
			}
		}
		if again {
			d.marks = append(d.marks, other.UUID)
		}
	}
	for _, img := range f.images {
		if !owned(img) && !moved(img) {
			continue
		}
		if img.Labels[labelDisk] == uuid || resting[img.Labels[labelSnapshot+im.Snapshotter]] {
			d.records = append(d.records, img)
		}
	}
	return d
}

// drop deletes a record, or, if somebody has given it another target, only our labels.
func (im *Importer) drop(ctx context.Context, img images.Image) error {
	var err error
	if owned(img) {
		err = im.ctr.Images.Delete(ctx, img.Name, images.DeleteTarget(&img.Target))
	} else {
		var paths []string
		for _, key := range []string{labelDisk, labelRecord, labelImage, labelSnapshot + im.Snapshotter} {
			paths = append(paths, "labels."+key)
		}
		_, err = im.ctr.Images.Update(ctx, images.Image{Name: img.Name, Target: img.Target}, paths...) // to nothing
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("take back image %s: %w", img.Name, err)
	}
	return nil
}

// collect has containerd collect garbage now, and waits: deleting a lease can be asked to do so, whatever it holds.
func (im *Importer) collect(ctx context.Context, uuid string) error {
	_, err := im.ctr.Leases.Create(ctx, leases.WithID(workLease(uuid)), leases.WithLabel(labelDisk, uuid), leases.WithExpiration(leaseLife))
	if err == nil || errdefs.IsAlreadyExists(err) {
		err = im.ctr.Leases.Delete(ctx, leases.Lease{ID: workLease(uuid)}, leases.SynchronousDelete)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}
