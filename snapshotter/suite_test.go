package snapshotter_test

import (
	"context"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"berth.dev/berth/snapshotter"
)

func TestSuiteSmoke(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := snapshotter.Open(ctx, snapshotter.Config{Root: root, Source: none{}})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}
