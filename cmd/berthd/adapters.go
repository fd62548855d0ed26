package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/control"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/snapshotter"
)

// layerSource is the stage as the snapshotter sees it. The two packages have only the names of layers in common.
type layerSource struct {
	stage *stage.Stager
}

var _ snapshotter.LayerSource = layerSource{}

func (s layerSource) Acquire(ctx context.Context, holder string, l snapshotter.LayerRequest) (snapshotter.HeldLayer, error) {
	return heldLayer(s.stage.Acquire(ctx, holder, l.LayerName))
}

func heldLayer(held stage.Held, err error) (snapshotter.HeldLayer, error) {
	if err != nil {
		return snapshotter.HeldLayer{}, err
	}
	return snapshotter.HeldLayer{Dir: held.Dir, DiskUUID: held.DiskUUID, LayerNumber: held.LayerNumber, DiffID: held.DiffID,
		MatchedBy: held.MatchedBy, BlobSize: held.BlobSize}, nil
}

func (s layerSource) Release(ctx context.Context, holder string) error {
	return s.stage.Release(ctx, holder)
}

func (s layerSource) LayerDir(_ context.Context, diskUUID string, layerNumber int) (string, error) {
	return s.stage.LayerDir(diskUUID, layerNumber)
}

// reconcile tells the stage what the adopted snapshots hold: they are the truth after a crash. Layers of disks that
// nobody knows any more are returned.
func reconcile(ctx context.Context, sn *snapshotter.Snapshotter, st *stage.Stager) (missing []stage.Hold, err error) {
	adopted, err := sn.Adopted(ctx)
	if err != nil {
		return nil, fmt.Errorf("list adopted snapshots: %w", err)
	}
	holds := make([]stage.Hold, len(adopted))
	for i, a := range adopted {
		holds[i] = stage.Hold{Holder: a.Holder, DiskUUID: a.DiskUUID, LayerNumber: a.LayerNumber}
	}
	return st.Reconcile(ctx, holds)
}

// disks is the stage as the control API sees it.
type disks struct {
	stage *stage.Stager
}

var (
	_ control.Checker = disks{}
	_ control.Layers  = disks{}
)

func (d disks) List(context.Context) ([]control.Disk, error) {
	var list []control.Disk
	for _, s := range d.stage.Disks() {
		list = append(list, diskOf(s))
	}
	return list, nil
}

func diskOf(s stage.DiskStatus) control.Disk {
	d := control.Disk{
		Name: s.Name, Driver: s.Driver, VolumeID: s.VolumeID, SnapshotID: s.SnapshotID, UUID: s.UUID, IndexDigest: s.IndexDigest,
		State: string(s.State), Serving: s.Serving, Device: s.Device, MountPoint: s.MountPoint, SizeBytes: s.SizeBytes,
		Layers: s.Layers, LayersInUse: s.LayersInUse, Holders: s.Holders, Since: s.Since, Keep: s.Keep,
	}
	if s.LastError != nil {
		d.LastError = s.LastError.Error()
	}
	return d
}

func (d disks) Attach(ctx context.Context, spec control.DiskSpec) (control.Disk, error) {
	s, err := d.stage.Stage(ctx, stage.Spec{Name: spec.Name, Driver: spec.Driver, VolumeID: spec.VolumeID, SnapshotID: spec.SnapshotID,
		Keep: spec.Keep, Expect: layerdisk.Identity{IndexDigest: spec.Expect}})
	if err != nil {
		return control.Disk{}, err
	}
	return diskOf(s), nil
}

func (d disks) Detach(ctx context.Context, name string, drain bool) (holders int, err error) {
	return d.stage.Unstage(ctx, name, stage.UnstageOptions{Drain: drain})
}

func (d disks) Check(ctx context.Context, name string) error { return d.stage.Check(ctx, name) }

func (d disks) Locate(ctx context.Context, l layerdisk.LayerName) (control.Location, error) {
	held, err := d.stage.Locate(l)
	if err != nil {
		return control.Location{}, err
	}
	return control.Location{Disk: held.DiskName, LayerNumber: held.LayerNumber, MatchedBy: string(held.MatchedBy)}, ctx.Err()
}

func (d disks) FindImage(_ context.Context, reference string, platform ocispec.Platform) (control.Image, error) {
	matcher := platforms.Only(platform)
	found := d.stage.Images(reference, matcher)
	if len(found) == 0 {
		return control.Image{}, fmt.Errorf("no attached disk has it for %s: %w", platforms.FormatAll(platform), errdefs.ErrNotFound)
	}
	best := slices.MinFunc(found, func(a, b stage.FoundImage) int {
		switch {
		case matcher.Less(a.Image.Platform, b.Image.Platform):
			return -1
		case matcher.Less(b.Image.Platform, a.Image.Platform):
			return 1
		}
		return 0
	})
	return control.Image{Disk: best.DiskName, Manifest: best.Image.RawManifest, Config: best.Image.RawConfig}, nil
}
