package snapshotter

import (
	"context"
	"maps"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// maker makes snapshots as the wrapped snapshotter does, on top of whatever mix of local and adopted layers.
type maker struct {
	overlay snapshots.Snapshotter
	rows    rows
	stacks  *stacks
	mender  *mender
}

// creator is Prepare or View of the wrapped snapshotter.
type creator func(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error)

// create makes a snapshot as the wrapped snapshotter does, on top of whatever mix of local and adopted layers.
func (m *maker) create(ctx context.Context, do creator, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	mounts, _, err := m.createOn(ctx, do, key, parent, labels)
	return mounts, err
}

// createOn creates as create does, and also returns what is below.
func (m *maker) createOn(ctx context.Context, do creator, key, parent string, labels map[string]string) ([]mount.Mount, lowers, error) {
	below, err := m.mender.below(ctx, parent)
	if err != nil {
		return nil, below, err
	}
	if _, ok := below.top.info.Labels[labelRemapped]; ok {
		// containerd asks for the id map all the same; with both, every file would belong to nobody, and containerd
		// before 2.0 does not even know such mounts.
		labels = maps.Clone(labels)
		delete(labels, snapshots.LabelSnapshotUIDMapping)
		delete(labels, snapshots.LabelSnapshotGIDMapping)
	}
	if err := m.stacks.giveForm(ctx, below); err != nil {
		return nil, below, err
	}
	m.rows.index.add(labels[labelRef], parent, key)
	mounts, err := do(ctx, key, parent, snapshots.WithLabels(labels))
	if err != nil {
		if !errdefs.IsAlreadyExists(err) {
			m.rows.index.remove(labels[labelRef], parent, key)
		}
		return nil, below, err
	}
	mounts, err = below.rewrite(mounts)
	return mounts, below, err
}
