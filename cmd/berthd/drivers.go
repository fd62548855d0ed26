package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/internal/config"
)

// drivers are the block storage drivers by the name that disks name them by, and what has to be closed at the end.
type drivers struct {
	attachers map[string]blockdev.Attacher
	// backends are those that can make and keep the volumes of image snapshots.
	backends map[string]lifecycle.Backend
	closers  []io.Closer
	attached *attached.Driver
}

// openDrivers is the one list of drivers.
func openDrivers(c config.Config) (*drivers, error) {
	loop, err := loopdev.Open(cmp.Or(c.Loop.Directory, filepath.Join(c.Root, "volumes")))
	if err != nil {
		return nil, fmt.Errorf("open driver loop: %w", err)
	}
	found, err := attached.Open(attached.Config{Options: discoverOptions(c.Discover), Dir: filepath.Join(c.Root, "attached"), Wait: deviceWait})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open driver %s: %w", attached.Name, err), loop.Close())
	}
	d := &drivers{
		attachers: map[string]blockdev.Attacher{config.LoopDriver: loop, attached.Name: found},
		backends:  map[string]lifecycle.Backend{config.LoopDriver: {Provisioner: loop, Attacher: loop, Snapshotter: loop}},
		closers:   []io.Closer{loop}, attached: found,
	}
	for name, cfg := range c.Drivers.CSI {
		driver, err := csi.Open(csiConfig(cfg, filepath.Join(c.Root, "csi", name)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open driver %s: %w", name, err), d.Close())
		}
		d.attachers[name], d.backends[name], d.closers = driver, csiBackend(name, driver), append(d.closers, driver)
	}
	return d, nil
}

func csiConfig(c config.CSI, directory string) csi.Config {
	return csi.Config{
		Node: c.Node, Controller: c.Controller, Directory: cmp.Or(c.Directory, directory), Timeout: c.Timeout.Std(),
		Parameters: c.Parameters, SnapshotParameters: c.SnapshotParameters, RestoreParameters: c.RestoreParameters, Topology: c.Topology, Secrets: csi.Secrets(c.Secrets),
	}
}

// deviceWait is how long the driver of attached disks waits for a device: clouds need 2 to 20 seconds to attach one,
// but whoever wants the disk asks again, and detaching it has to wait for an attempt to end.
const deviceWait = 10 * time.Second

func discoverOptions(d config.Discover) attached.Options {
	return attached.Options{Expect: d.Expect, LoopsBelow: d.LoopsBelow}
}

// csiBackend has image snapshots kept by a CSI driver, if that can.
func csiBackend(name string, d *csi.Driver) lifecycle.Backend {
	return lifecycle.Backend{
		Provisioner: d, Attacher: d, Snapshotter: d, TakeParameters: d.TakeParameters,
		Check: func(ctx context.Context) error {
			err := d.CheckProvisioning(ctx)
			if errors.Is(err, blockdev.ErrUnsupported) {
				return fmt.Errorf("image snapshots are kept as volume snapshots, for which image_snapshots.driver %q is not fit: %w", name, err)
			}
			return err
		},
	}
}

// Close leaves attached what is attached.
func (d *drivers) Close() error {
	var errs []error
	for _, c := range d.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
