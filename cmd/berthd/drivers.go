package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/config"
)

// drivers are the block storage drivers by the name that disks name them by, and what has to be closed at the end.
type drivers struct {
	attachers map[string]blockdev.Attacher
	closers   []io.Closer
}

// openDrivers is the one list of drivers.
func openDrivers(c config.Config) (*drivers, error) {
	loop, err := loopdev.Open(cmp.Or(c.Loop.Directory, filepath.Join(c.Root, "volumes")))
	if err != nil {
		return nil, fmt.Errorf("open driver loop: %w", err)
	}
	d := &drivers{map[string]blockdev.Attacher{config.LoopDriver: loop}, []io.Closer{loop}}
	for name, cfg := range c.Drivers.CSI {
		driver, err := csi.Open(csiConfig(cfg, filepath.Join(c.Root, "csi", name)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open driver %s: %w", name, err), d.Close())
		}
		d.attachers[name], d.closers = driver, append(d.closers, driver)
	}
	return d, nil
}

func csiConfig(c config.CSI, directory string) csi.Config {
	return csi.Config{
		Node: c.Node, Controller: c.Controller, Directory: cmp.Or(c.Directory, directory), Timeout: c.Timeout.Std(),
		Parameters: c.Parameters, SnapshotParameters: c.SnapshotParameters, Topology: c.Topology, Secrets: csi.Secrets(c.Secrets),
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
