package imageimport

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
)

// withdrawer takes back what was registered, and finds out whether anything else uses a disk.
type withdrawer struct {
	node Node
	ctr  Containerd
	// snapshotter is the name that containerd knows berth by.
	snapshotter string
	chooser     chooser
	// crash, in tests, is called between steps.
	crash func(step string)
}

// withdraw takes back what was registered of a disk. It also takes back images of other disks that rest on its layers
// or whose names it has; once the disk has left, these are registered again from their own disks. The mark is removed
// first, so that the images are registered again if the disk does not leave after all.
func (w *withdrawer) withdraw(ctx context.Context, uuid string, all []found, disks []Disk) error {
	uses, err := w.node.Uses(ctx)
	if err != nil {
		return fmt.Errorf("look what uses disk %s: %w", uuid, err)
	}
	for _, f := range all {
		ctx := namespaces.WithNamespace(ctx, f.namespace)
		drop := w.dropped(ctx, f, uuid, uses[uuid], disks)
		if len(drop.marks) == 0 && len(drop.records) == 0 {
			continue
		}
		for _, other := range drop.marks {
			err := w.ctr.Leases.Delete(ctx, leases.Lease{ID: doneLease(other)})
			if err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("delete mark of disk %s: %w", other, err)
			}
		}
		w.crash("unmarked")
		for _, img := range drop.records {
			if err := w.drop(ctx, img); err != nil {
				return err
			}
			w.crash("dropped")
		}
		if err := w.collect(ctx, uuid); err != nil {
			return err
		}
		w.crash("collected")
	}
	return nil
}

// dropping is what has to be removed to free a disk.
type dropping struct {
	// marks are the disks whose images have to be registered again, if they are still there.
	marks   []string
	records []images.Image
}

func (w *withdrawer) dropped(ctx context.Context, f found, uuid string, use Use, disks []Disk) dropping {
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
		for _, e := range w.chooser.choose(ctx, other.Index) {
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
		if img.Labels[labelDisk] == uuid || resting[img.Labels[labelSnapshot+w.snapshotter]] {
			d.records = append(d.records, img)
		}
	}
	return d
}

// drop deletes a record, or, if somebody has given it another target, only our labels.
func (w *withdrawer) drop(ctx context.Context, img images.Image) error {
	var err error
	if owned(img) {
		err = w.ctr.Images.Delete(ctx, img.Name, images.DeleteTarget(&img.Target))
	} else {
		var paths []string
		for _, key := range []string{labelDisk, labelRecord, labelImage, labelSnapshot + w.snapshotter} {
			paths = append(paths, "labels."+key)
		}
		_, err = w.ctr.Images.Update(ctx, images.Image{Name: img.Name, Target: img.Target}, paths...) // deletes all
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("take back image %s: %w", img.Name, err)
	}
	return nil
}

// collect makes containerd collect garbage now, and waits: the deletion of any lease can be asked to do this.
func (w *withdrawer) collect(ctx context.Context, uuid string) error {
	_, err := w.ctr.Leases.Create(ctx, leases.WithID(workLease(uuid)), leases.WithLabel(labelDisk, uuid), leases.WithExpiration(leaseLife))
	if err == nil || errdefs.IsAlreadyExists(err) {
		err = w.ctr.Leases.Delete(ctx, leases.Lease{ID: workLease(uuid)}, leases.SynchronousDelete)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// free reports whether only registered images use a disk: every snapshot that is a layer on it belongs to such an
// image, no other snapshot lies on these, and nobody else has registered the same images.
func (w *withdrawer) free(ctx context.Context, d Disk, all []found, disks []Disk) (bool, error) {
	uses, err := w.node.Uses(ctx)
	if err != nil {
		return false, fmt.Errorf("look what uses disk %s: %w", d.Name, err)
	}
	by := w.usedBy(d, uses[d.UUID], all, disks)
	log.G(ctx).WithFields(log.Fields{"disk": d.Name, "by": by}).Debug("looked what uses the disk besides registered images")
	return by == "", nil
}

// usedBy returns what else uses a disk, in words; empty if nothing does.
func (w *withdrawer) usedBy(d Disk, use Use, all []found, disks []Disk) string {
	if use.Others > 0 {
		return fmt.Sprintf("%d snapshots of containers or of pulled layers", use.Others)
	}
	ours := map[digest.Digest]bool{}
	for _, f := range all {
		targets := map[digest.Digest]bool{}
		for _, img := range f.images {
			if !owned(img) {
				continue
			}
			chains := w.chainsOf(img, disks)
			if img.Labels[labelDisk] == d.UUID || slices.ContainsFunc(chains, func(c digest.Digest) bool { return use.Chains[c] }) {
				targets[img.Target.Digest] = true
			}
			for _, c := range chains {
				ours[c] = true
			}
		}
		for _, img := range f.images {
			if !owned(img) && targets[img.Target.Digest] {
				return "image " + img.Name + " in namespace " + f.namespace
			}
		}
	}
	for chain := range use.Chains {
		if !ours[chain] {
			return "a snapshot of chain " + chain.String()
		}
	}
	return ""
}

// chainsOf returns the chains of a registered image, the highest first.
func (w *withdrawer) chainsOf(img images.Image, disks []Disk) []digest.Digest {
	top := digest.Digest(img.Labels[labelSnapshot+w.snapshotter])
	for _, d := range disks {
		if d.UUID == img.Labels[labelDisk] && d.Index != nil {
			return chainsOf(d.Index, top)
		}
	}
	return nil
}
