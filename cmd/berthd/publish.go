package main

import (
	"context"
	"path/filepath"

	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/imagesnapshot/catalog/publisher"
)

// publishedDir notes what was published where.
func publishedDir(root string) string { return filepath.Join(root, "published") }

// runPublishing takes away what was published in directories that are not configured any more, and then publishes. It
// does not wait for a directory that hangs.
func (s *imageSnapshots) runPublishing(ctx context.Context) error {
	left := make(chan error, 1)
	go func() {
		left <- publisher.Leave(ctx, s.published, s.publishDirectory, func(path string) (catalog.Publisher, error) { return directory.Open(path, 0) })
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-left:
		if err != nil {
			log.G(ctx).WithError(err).Warn("image snapshots are still published where the configuration says so no more, it is tried again at the next start")
		}
	}
	if s.publish == nil {
		return nil
	}
	return s.publish.Run(ctx)
}
