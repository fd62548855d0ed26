package main

import (
	"context"
	"fmt"

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

func (s layerSource) LayerDir(ctx context.Context, diskUUID string, layerNumber int) (string, error) {
	return s.stage.ServedDir(ctx, diskUUID, layerNumber)
}

// reconcile tells the stage what the adopted snapshots hold: they are the truth after a crash. Snapshots none of whose
// disks is known any more are returned, with the disk that they were adopted from.
func reconcile(ctx context.Context, sn *snapshotter.Snapshotter, st *stage.Stager) (missing []snapshotter.Adopted, err error) {
	adopted, err := sn.Adopted(ctx)
	if err != nil {
		return nil, fmt.Errorf("list adopted snapshots: %w", err)
	}
	holds := make([]stage.Hold, len(adopted))
	for i, a := range adopted {
		holds[i] = stage.Hold{Holder: a.Holder, DiskUUID: a.DiskUUID, LayerNumber: a.LayerNumber}
	}
	unknown, err := st.Reconcile(ctx, holds)
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	for _, h := range unknown {
		gone[h.Holder] = true
	}
	known := map[string]bool{}
	for _, a := range adopted {
		known[a.Name] = known[a.Name] || !gone[a.Holder]
	}
	for _, a := range adopted {
		if !known[a.Name] {
			known[a.Name] = true
			missing = append(missing, a)
		}
	}
	return missing, nil
}
