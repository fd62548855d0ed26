package main

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/internal/config"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/firststart"
)

// openRecorder makes what records first starts, if the configuration wants that. started is before any disk was
// mounted.
func (n *node) openRecorder(ctx context.Context, c config.Config, started time.Time) (err error) {
	if !c.ReadAhead.RecordFirstStart {
		return nil
	}
	pass := func(s firststart.Start) {
		if n.reader != nil {
			n.reader.Starting(s.DiskUUID, s.Image, s.ChainID)
		}
	}
	n.recorder, err = firststart.New(context.WithoutCancel(ctx), firststart.Config{
		Disks: recordedDisks{visitedDisks{n.stage}}, Lists: recordedLists{n.accessLists(c)},
		Time: c.ReadAhead.RecordTime.Std(), Since: started, Pass: pass,
	})
	return err
}

// recordedDisks is the stage as a recorder sees it.
type recordedDisks struct{ visitedDisks }

var _ firststart.Disks = recordedDisks{}

func (d recordedDisks) Visit(ctx context.Context, diskUUID string) (context.Context, firststart.Disk, func(), error) {
	visit, v, leave, err := d.stage.Visit(ctx, diskUUID)
	if err != nil {
		return nil, firststart.Disk{}, nil, err
	}
	disk := firststart.Disk{Name: v.Name, Identity: v.Identity, Index: v.Index, Device: v.Device, MountPoint: v.MountPoint}
	for _, s := range d.stage.Disks() {
		if s.Name == v.Name {
			disk.Mounted = s.Since
		}
	}
	return visit, disk, leave, nil
}

// recordedLists are kept with the image snapshots of this node that have the disk, or else in the node's own directory.
type recordedLists struct {
	accessLists
}

var _ firststart.Lists = recordedLists{}

func (r recordedLists) Has(ctx context.Context, d firststart.Disk, image string) (bool, error) {
	_, err := r.find(ctx, d.Identity, image)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (r recordedLists) Keep(ctx context.Context, d firststart.Disk, l *accesslist.List) error {
	if r.snapshots != nil {
		_, ids, err := r.snapshots.AccessListsOn(ctx, d.Identity.IndexDigest, l.Image)
		for _, id := range ids {
			err = errors.Join(err, r.snapshots.PutAccessList(ctx, id, l))
		}
		if len(ids) > 0 && err == nil {
			return nil
		}
	}
	return r.directory.Put(l)
}
