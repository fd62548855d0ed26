package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/config"
)

// drivers are the block storage drivers by the name that disks name them by, and what has to be closed at the end.
type drivers struct {
	attachers map[string]blockdev.Attacher
	// backend makes and keeps the volumes of image snapshots.
	backend backend
	closers []io.Closer
}

// openDrivers is the one list of drivers.
func openDrivers(c config.Config) (*drivers, error) {
	loop, err := loopdev.Open(cmp.Or(c.Loop.Directory, filepath.Join(c.Root, "volumes")))
	if err != nil {
		return nil, fmt.Errorf("open driver loop: %w", err)
	}
	return &drivers{map[string]blockdev.Attacher{"loop": loop}, loop, []io.Closer{loop}}, nil
}

// backend is a driver that plays all roles.
type backend interface {
	blockdev.Attacher
	blockdev.Provisioner
	blockdev.Snapshotter
}

// Close leaves attached what is attached.
func (d *drivers) Close() error {
	var errs []error
	for _, c := range d.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
