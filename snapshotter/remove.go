package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// Remove implements snapshots.Snapshotter. Directories stay until Cleanup; the hold on a layer is given up at once,
// after nothing refers to the layer any more.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	n, err := s.rows.remove(ctx, key)
	if err != nil {
		return err
	}
	s.step("removed")
	s.mender.note(key, Mend{})
	all, err := held(n.info.Labels)
	if err != nil {
		return err
	}
	s.holds.releaseAll(ctx, all)
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
