package snapshotter

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Walk implements snapshots.Snapshotter. The filter that containerd's metadata store uses for each layer that it need
// not fetch costs the same however many snapshots there are; all others read the whole store.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	if ref, parent, ok := targetFilter(filters); ok {
		return s.walkTarget(ctx, fn, ref, parent)
	}
	visited := false
	err := s.overlay.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		visited = true
		info.Labels = publicLabels(info.Labels)
		return fn(ctx, info)
	}, filters...)
	if !visited && errdefs.IsNotFound(err) {
		// A store that nobody has written to yet has no tables, but nothing is missing.
		return nil
	}
	return err //nolint:wrapcheck // the wrapped snapshotter speaks for itself
}

// walkTarget visits the snapshots with a target and a parent. The metadata store takes the first committed one, so the
// order is: adopted and mounted, local, adopted from a disk that is missing, not committed.
func (s *Snapshotter) walkTarget(ctx context.Context, fn snapshots.WalkFunc, ref, parent string) error {
	var nodes []node
	err := s.rows.read(ctx, func(ctx context.Context) error {
		for _, name := range s.rows.index.lookup(ref, parent) {
			n, err := lookup(ctx, name)
			switch {
			case errdefs.IsNotFound(err):
			case err != nil:
				return err
			case n.ref() == ref && n.info.Parent == parent:
				nodes = append(nodes, n)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("find snapshots of target %s: %w", ref, err)
	}
	if len(nodes) > 1 {
		rank := make(map[string]int, len(nodes))
		for _, n := range nodes {
			rank[n.id] = s.stacks.rank(ctx, n)
		}
		slices.SortStableFunc(nodes, func(a, b node) int { return cmp.Compare(rank[a.id], rank[b.id]) })
	}
	for _, n := range nodes {
		n.info.Labels = publicLabels(n.info.Labels)
		if err := fn(ctx, n.info); err != nil {
			return err
		}
	}
	return nil
}

// rank is the order in which snapshots of the same target are offered, see walkTarget.
func (s *stacks) rank(ctx context.Context, n node) int {
	switch {
	case !n.committed():
		return 3
	case n.adopted == nil:
		return 1
	}
	if _, err := s.layerDir(ctx, n); err != nil {
		return 2
	}
	return 0
}

// Update implements snapshots.Snapshotter. Our own labels and an adopted snapshot's target stay as they are.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	for _, path := range fieldpaths {
		if name, ok := strings.CutPrefix(path, "labels."); ok && strings.HasPrefix(name, privatePrefix) {
			return snapshots.Info{}, fmt.Errorf("update snapshot %s: label %s is the snapshotter's own: %w", info.Name, name, errdefs.ErrInvalidArgument)
		}
	}
	var before node
	err = s.rows.write(ctx, func(ctx context.Context) error {
		if before, err = lookup(ctx, info.Name); err != nil {
			return err
		}
		info.Labels = keepPinned(info.Labels, before)
		if updated, err = storage.UpdateInfo(ctx, info, fieldpaths...); err != nil {
			return err //nolint:wrapcheck // wrapped below
		}
		s.rows.index.add(updated.Labels[labelRef], before.info.Parent, info.Name)
		return nil
	})
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %s: %w", info.Name, err)
	}
	if was := before.ref(); was != updated.Labels[labelRef] {
		s.rows.index.remove(was, before.info.Parent, info.Name)
	}
	updated.Labels = publicLabels(updated.Labels)
	return updated, nil
}

// keepPinned are a client's labels for a snapshot, with those that clients cannot change as they were.
func keepPinned(labels map[string]string, before node) map[string]string {
	pinned := maps.Clone(before.info.Labels)
	maps.DeleteFunc(pinned, func(name, _ string) bool {
		return !strings.HasPrefix(name, privatePrefix) && (name != labelRef || before.adopted == nil)
	})
	if labels = publicLabels(labels); labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, pinned)
	return labels
}
