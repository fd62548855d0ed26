// Package drivers is the one list of block storage drivers. Programs take their drivers from here, each with the same
// patience and the same measurement around it, and can add drivers of their own.
package drivers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/interceptor"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/blockdev/retry"
)

// Config of the drivers that berth has.
type Config struct {
	// LoopDirectory is the directory of the embedded driver.
	LoopDirectory string
	// Attached configures the driver of disks that are attached already.
	Attached attached.Config
	// CSI drivers by the names that disks name them by.
	CSI map[string]csi.Config
	// Observe, if not nil, is called after each attempt at an operation of a driver. The operation is the name of its
	// method.
	Observe func(driver, operation string, took time.Duration, err error)
}

// Driver is a driver with the roles that it has. A storage that was too busy is asked again, as package retry does.
type Driver struct {
	blockdev.Attacher
	// Provisioner and VolumeSnapshotter are nil if the driver does not have the role.
	Provisioner       blockdev.Provisioner
	VolumeSnapshotter blockdev.VolumeSnapshotter
	// CheckProvisioning says why the storage behind the driver cannot make volumes and volume snapshots; nil if the
	// driver's roles say all there is.
	CheckProvisioning func(context.Context) error
	// TakeParameters is blockdev.ParameterTaker's, nil if the driver has no parameters.
	TakeParameters func(parameters map[string]string) (taken map[string]string, ignored []string)
}

// Set has open drivers by name. It is not safe for concurrent use.
type Set struct {
	observe func(driver, operation string, took time.Duration, err error)
	drivers map[string]Driver
	closers []io.Closer
	found   *attached.Driver
}

// Open opens the drivers that berth has. It asks no storage anything.
func Open(c Config) (_ *Set, err error) {
	s := &Set{observe: c.Observe, drivers: make(map[string]Driver)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	loop, err := loopdev.Open(c.LoopDirectory)
	if err := s.add(loopdev.Name, loop, err); err != nil {
		return nil, err
	}
	s.found, err = attached.Open(c.Attached)
	if err := s.add(attached.Name, s.found, err); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(c.CSI)) {
		driver, err := csi.Open(c.CSI[name])
		if err := s.add(name, driver, err); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Set) add(name string, driver blockdev.Attacher, err error) error {
	if err != nil {
		return fmt.Errorf("open driver %s: %w", name, err)
	}
	return s.Add(name, driver)
}

// Add adds a driver, which belongs to the set from then on, also if the name is taken: errdefs.ErrAlreadyExists. It is
// closed with the set if it is an io.Closer. What it can do is found from the interfaces of package blockdev that it
// implements.
func (s *Set) Add(name string, driver blockdev.Attacher) error {
	if c, ok := driver.(io.Closer); ok {
		s.closers = append(s.closers, c)
	}
	if _, ok := s.drivers[name]; ok {
		return fmt.Errorf("add driver %s: there is one of that name: %w", name, errdefs.ErrAlreadyExists)
	}
	d := Driver{Attacher: interceptor.Wrap(driver, retry.Intercept, s.measure(name))}
	d.Provisioner, _ = d.Attacher.(blockdev.Provisioner)
	d.VolumeSnapshotter, _ = d.Attacher.(blockdev.VolumeSnapshotter)
	if c, ok := driver.(blockdev.ProvisioningChecker); ok {
		d.CheckProvisioning = func(ctx context.Context) error { return retry.Do(ctx, c.CheckProvisioning) }
	}
	if t, ok := driver.(blockdev.ParameterTaker); ok {
		d.TakeParameters = t.TakeParameters
	}
	s.drivers[name] = d
	return nil
}

func (s *Set) measure(driver string) interceptor.Interceptor {
	return func(ctx context.Context, operation string, do func(context.Context) error) error {
		start := time.Now()
		err := do(ctx)
		if s.observe != nil {
			s.observe(driver, operation, time.Since(start), err)
		}
		return err
	}
}

// All are the drivers by name. The map is the caller's.
func (s *Set) All() map[string]Driver { return maps.Clone(s.drivers) }

// Attachers are the drivers by name, in that role. Their other roles can be asked for by a type assertion. The map is
// the caller's.
func (s *Set) Attachers() map[string]blockdev.Attacher {
	list := make(map[string]blockdev.Attacher, len(s.drivers))
	for name, d := range s.drivers {
		list[name] = d.Attacher
	}
	return list
}

// Found is the driver of disks that are attached already, which can also watch for them.
func (s *Set) Found() *attached.Driver { return s.found }

// Close closes the drivers, the last one first. What is attached stays attached.
func (s *Set) Close() error {
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
