package snapshotter_test

import (
	"context"

	"berth.dev/berth/snapshotter"
	"github.com/containerd/errdefs"
)

type none struct{}

func (none) Acquire(context.Context, string, snapshotter.LayerRequest) (snapshotter.HeldLayer, error) {
	return snapshotter.HeldLayer{}, errdefs.ErrNotFound
}
func (none) Release(context.Context, string) error { return nil }
func (none) LayerDir(context.Context, string, int) (string, error) {
	return "", errdefs.ErrUnavailable
}
