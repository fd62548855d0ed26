package snapshotter

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// WithStep has step called wherever a crash may do the most harm.
func WithStep(cfg Config, step func(name string)) Config {
	cfg.step = step
	return cfg
}

// Wrapped is the overlay snapshotter inside, so that tests can see what it says by itself.
func Wrapped(s *Snapshotter) snapshots.Snapshotter { return s.overlay }

// TargetFilter is the recogniser of the metadata store's filter.
var TargetFilter = targetFilter

// ForgetBoot does what Open does after another boot of the machine.
func ForgetBoot(ctx context.Context, s *Snapshotter) error {
	return s.rows.forgetHeld(ctx, "another boot")
}
