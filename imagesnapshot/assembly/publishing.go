package assembly

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/imagesnapshot/catalog/publisher"
	"berth.dev/berth/imagesnapshot/store"
)

// Publishing announces image snapshots to other nodes, in a directory that they read.
type Publishing struct {
	// Directory is what other nodes read. If it is empty, nothing is published.
	Directory string
	// Interval after which it is looked at for changes of others, at the latest.
	Interval time.Duration
	// Records is a directory, made if it is missing, that remembers what was published where, so that it is withdrawn
	// when Directory changes.
	Records string
	// LocalDrivers are those whose disks no other node can attach. What is on them is not published.
	LocalDrivers []string
}

// open returns the publisher, or nil without a directory.
func (p Publishing) open(from catalog.Lister, lists store.AccessLists) (*publisher.Publisher, error) {
	if p.Directory == "" {
		return nil, nil //nolint:nilnil // "nowhere" is the usual answer, not an error
	}
	to, err := directory.Open(p.Directory, p.Interval)
	if err != nil {
		return nil, err
	}
	return publisher.New(publisher.Config{
		From: from, To: to, Lists: lists.AccessLists, ListsTo: to, Target: p.Directory, Records: p.Records,
		Publishable: func(e *catalog.Entry) bool { return e.HasDisk() && !slices.Contains(p.LocalDrivers, e.Source.Driver) },
	}), nil
}

// publish withdraws what was published in directories that the options no longer name, and then publishes. It does not
// wait for a directory that hangs.
func (s *ImageSnapshots) publish(ctx context.Context) error {
	withdrawn := make(chan error, 1)
	go func() {
		withdrawn <- publisher.WithdrawElsewhere(ctx, s.publishing.Records, s.publishing.Directory,
			func(path string) (catalog.Publisher, error) { return directory.Open(path, 0) })
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-withdrawn:
		if err != nil {
			log.G(ctx).WithError(err).Warn("image snapshots are still published in a directory that is no longer configured; withdrawing them is tried again after a restart")
		}
	}
	if s.publisher == nil {
		return nil
	}
	return s.publisher.Run(ctx)
}
