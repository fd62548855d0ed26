package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Use says what uses a disk.
type Use struct {
	// Chains of the adopted snapshots whose layer is on it.
	Chains map[digest.Digest]bool
	// Others are the snapshots that lie on those, at whatever height, and are not adopted: those of containers, and
	// local layers.
	Others int
}

// Uses of disks by their UUIDs. It reads the whole store.
func (s *Snapshotter) Uses(ctx context.Context) (map[string]Use, error) {
	type row struct {
		parent  string
		adopted *record
	}
	rows := map[string]row{}
	err := s.rows.read(ctx, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			r, err := recordOf(info.Labels)
			if err != nil {
				return fmt.Errorf("read snapshot %s: %w", info.Name, err)
			}
			rows[info.Name] = row{info.Parent, r}
			return nil
		})
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("list uses of disks: %w", err)
	}
	uses := map[string]Use{}
	for _, r := range rows {
		if r.adopted != nil {
			for _, p := range r.adopted.locations() {
				u := uses[p.DiskUUID]
				if u.Chains == nil {
					u.Chains = map[digest.Digest]bool{}
				}
				u.Chains[r.adopted.ChainID] = true
				uses[p.DiskUUID] = u
			}
			continue
		}
		below := map[string]bool{}
		for parent := r.parent; parent != ""; parent = rows[parent].parent {
			if a := rows[parent].adopted; a != nil {
				for _, p := range a.locations() {
					below[p.DiskUUID] = true
				}
			}
		}
		for disk := range below {
			u := uses[disk]
			u.Others++
			uses[disk] = u
		}
	}
	return uses, nil
}
