package builder

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Manifest fetches the manifest and the config of one image for one platform. The options must name exactly this one
// image. It asks registries and mirrors as Build does, ignores Options.Output, and returns the same errors as Build.
func Manifest(ctx context.Context, o Options) (manifest, config []byte, err error) {
	o.planOnly, o.Output = true, Output{}
	if err := o.complete(); err != nil {
		return nil, nil, fmt.Errorf("fetch manifest: %w", err)
	}
	retry := defaultRetryPolicy()
	retry.attempts = 2 // somebody waits for the answer
	p, err := makePlan(ctx, &o, retry, serialise(o.Progress))
	defer func() { err = errors.Join(err, p.close()) }()
	if err != nil {
		return nil, nil, err
	}
	if len(p.images) != 1 {
		return nil, nil, fmt.Errorf("fetch manifest: one image is to be named, not %d: %w", len(p.images), errdefs.ErrInvalidArgument)
	}
	return p.images[0].record.RawManifest, p.images[0].record.RawConfig, nil
}
