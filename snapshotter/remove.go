package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// drop removes a snapshot that nobody has seen.
func (s *Snapshotter) drop(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	_, err := s.removeRow(ctx, key)
	return err
}

// removeRow removes a snapshot from the store and the index, and returns what it was.
func (s *Snapshotter) removeRow(ctx context.Context, key string) (n node, err error) {
	err = s.store.write(ctx, func(ctx context.Context) error {
		if n, err = lookup(ctx, key); err != nil {
			return err
		}
		_, _, err = storage.Remove(ctx, key)
		return err //nolint:wrapcheck // wrapped below
	})
	if err != nil {
		return node{}, fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	s.index.remove(n.ref(), n.info.Parent, key)
	return n, nil
}

// Remove implements snapshots.Snapshotter. Directories stay until Cleanup; the hold on a layer is given up at once,
// after nothing refers to the layer any more.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	n, err := s.removeRow(ctx, key)
	if err != nil {
		return err
	}
	s.step("removed")
	if n.adopted != nil {
		s.holds.release(ctx, n.adopted.Holder)
	}
	return nil
}

// Cleanup implements snapshots.Cleaner: it deletes the directories of removed snapshots.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	s.holds.retry(ctx)
	err := s.cleaner.Cleanup(ctx)
	// A store that nobody has written to yet has no tables, and nothing to clean up.
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}
