package daemon

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/drivers"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/metrics"
)

// deviceWait is how long the driver of attached disks waits for a device: clouds need 2 to 20 seconds to attach one,
// but whoever wants the disk asks again, and detaching it has to wait for an attempt to end.
const deviceWait = 10 * time.Second

// openDrivers opens all drivers that the configuration names and those of the program, and measures them.
func openDrivers(_ context.Context, n *node) (err error) {
	if n.drivers, err = drivers.Open(driverConfig(&n.config, metrics.RegisterDrivers(n.registry))); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(n.own)) {
		if err := n.drivers.Add(name, n.own[name]); err != nil {
			return errors.Join(err, n.drivers.Close())
		}
	}
	return nil
}

// driverConfig is what the configuration says of drivers.
func driverConfig(c *config.Config, m *metrics.Drivers) drivers.Config {
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
			Timeout: d.Timeout.Std(), Parameters: d.Parameters, VolumeSnapshotParameters: d.VolumeSnapshotParameters,
			RestoreParameters: d.RestoreParameters, Topology: d.Topology, Secrets: csi.Secrets(d.Secrets),
		}
	}
	return cfg
}
