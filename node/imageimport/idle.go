package imageimport

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
)

// giveUpIdle detaches disks that nothing but the registered images has used for long enough, and says when to look
// again.
func (im *Importer) giveUpIdle(ctx context.Context, all []found, disks []Disk) (again time.Time) {
	if im.IdleTimeout == 0 {
		return time.Time{}
	}
	for _, d := range disks {
		if d.Phase != Serving || d.Keep || d.Holders == 0 || !im.isWanted(d.Name) {
			continue
		}
		free, err := im.free(ctx, d, all, disks)
		if err != nil {
			log.G(ctx).WithError(err).WithField("disk", d.Name).Warn("cannot look whether the disk is idle, it is tried again")
		}
		now, st := time.Now(), im.state(d.UUID)
		switch {
		case !free:
			st.freeSince = time.Time{}
		case st.freeSince.IsZero():
			st.freeSince = now
		case !now.Before(st.freeSince.Add(im.IdleTimeout)):
			im.giveUp(ctx, d, all, disks)
			return now // others may have changed with it
		}
		// Nobody tells when the last container goes.
		if at := now.Add(im.IdleTimeout / 2); again.IsZero() || at.Before(again) {
			again = at
		}
	}
	return again
}

func (im *Importer) giveUp(ctx context.Context, d Disk, all []found, disks []Disk) {
	entry := log.G(ctx).WithField("disk", d.Name)
	err := im.takeBack(ctx, d.UUID, all, disks)
	if err == nil {
		err = im.node.Detach(ctx, d.Name)
	}
	switch {
	case err == nil:
		entry.Info("disk that only registered images used is detached, and they are taken back")
	case errdefs.IsFailedPrecondition(err):
		entry.WithError(err).Info("disk is used again, its images are registered again")
	case ctx.Err() == nil:
		entry.WithError(err).Warn("idle disk is not detached yet")
	}
}

// free says whether nothing but registered images uses a disk: every snapshot that is a layer on it belongs to one, no
// other snapshot lies on those, and nobody else has registered the same images.
func (im *Importer) free(ctx context.Context, d Disk, all []found, disks []Disk) (bool, error) {
	uses, err := im.node.Uses(ctx)
	if err != nil {
		return false, fmt.Errorf("look what uses disk %s: %w", d.Name, err)
	}
	by := im.usedBy(d, uses[d.UUID], all, disks)
	log.G(ctx).WithFields(log.Fields{"disk": d.Name, "by": by}).Debug("looked what uses the disk besides registered images")
	return by == "", nil
}

// usedBy is what else uses a disk, in words; empty if nothing does.
func (im *Importer) usedBy(d Disk, use Use, all []found, disks []Disk) string {
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
			chains := im.chainsOf(img, disks)
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

// chainsOf are the chains of a registered image, the highest first.
func (im *Importer) chainsOf(img images.Image, disks []Disk) []digest.Digest {
	top := digest.Digest(img.Labels[labelSnapshot+im.Snapshotter])
	for _, d := range disks {
		if d.UUID == img.Labels[labelDisk] && d.Index != nil {
			return chainsOf(d.Index, top)
		}
	}
	return nil
}
