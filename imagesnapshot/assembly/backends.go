package assembly

import (
	"context"
	"errors"
	"fmt"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/drivers"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// Backends are the drivers that can keep image snapshots, by their names.
func Backends(all map[string]drivers.Driver) map[string]lifecycle.Backend {
	list := make(map[string]lifecycle.Backend)
	for name, d := range all {
		if d.Provisioner == nil || d.VolumeSnapshotter == nil {
			continue
		}
		list[name] = lifecycle.Backend{
			Provisioner: d.Provisioner, Attacher: d.Attacher, Snapshotter: d.VolumeSnapshotter,
			Check: checkOf(name, d), TakeParameters: d.TakeParameters,
		}
	}
	return list
}

// checkOf says why the driver cannot keep image snapshots; nil if its roles say that it can.
func checkOf(name string, d drivers.Driver) func(context.Context) error {
	if d.CheckProvisioning == nil {
		return nil
	}
	return func(ctx context.Context) error {
		err := d.CheckProvisioning(ctx)
		if errors.Is(err, blockdev.ErrUnsupported) {
			return fmt.Errorf("image snapshots are kept as volume snapshots, for which image_snapshots.driver %q is not fit: %w", name, err)
		}
		return err
	}
}
