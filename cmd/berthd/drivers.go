package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/drivers"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/metrics"
)

// deviceWait is how long the driver of attached disks waits for a device: clouds need 2 to 20 seconds to attach one,
// but whoever wants the disk asks again, and detaching it has to wait for an attempt to end.
const deviceWait = 10 * time.Second

// openDrivers opens all drivers that the configuration names, and measures them.
func openDrivers(c config.Config, m *metrics.Drivers) (*drivers.Set, error) {
	cfg := drivers.Config{
		LoopDirectory: cmp.Or(c.Loop.Directory, filepath.Join(c.Root, "volumes")),
		Attached: attached.Config{
			Options: attached.Options{Expect: c.Discover.Expect, LoopsBelow: c.Discover.LoopsBelow},
			Dir:     filepath.Join(c.Root, "attached"), Wait: deviceWait,
		},
		CSI: make(map[string]csi.Config, len(c.Drivers.CSI)),
		Observe: func(driver, operation string, took time.Duration, err error) {
			m.Operation(driver, operation, took, metrics.ErrorClass(err))
		},
	}
	for name, d := range c.Drivers.CSI {
		cfg.CSI[name] = csi.Config{
			Node: d.Node, Controller: d.Controller, Directory: cmp.Or(d.Directory, filepath.Join(c.Root, "csi", name)),
			Timeout: d.Timeout.Std(), Parameters: d.Parameters, SnapshotParameters: d.SnapshotParameters,
			RestoreParameters: d.RestoreParameters, Topology: d.Topology, Secrets: csi.Secrets(d.Secrets),
		}
	}
	return drivers.Open(cfg)
}

// backends are the drivers that can keep image snapshots.
func backends(all map[string]drivers.Driver) map[string]lifecycle.Backend {
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
