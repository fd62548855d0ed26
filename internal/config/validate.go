package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// maxRoot keeps overlay options with a hundred layers in one page; see docs/architecture.md.
	maxRoot = 64
	// maxSocket is sizeof(sun_path) - 1, unix(7).
	maxSocket = 107
	// minInterval keeps looking at a large directory from being all that the daemon does.
	minInterval = Duration(100 * time.Millisecond)
	// maxDisks is far above what storage attaches to one machine.
	maxDisks = 1000
	// maxMinRate is more than any disk brings.
	maxMinRate = 1e12
	// maxAttachCost is more than any image has.
	maxAttachCost = 1 << 40
)

// diskName is also what "berth detach" takes and a metric may show, so it is kept short and plain.
var diskName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)

// Validate names every key whose value cannot be used and what may stand there. The error is
// errdefs.ErrInvalidArgument.
func (c *Config) Validate() error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	switch {
	case !cleanAbs(c.Root):
		refuse("root: %q is not a clean absolute path", c.Root)
	case c.Root == "/":
		refuse("root: / cannot be used, name a directory of its own")
	case len(c.Root) > maxRoot:
		refuse("root: %q has %d bytes, at most %d are allowed so that mount options fit one page", c.Root, len(c.Root), maxRoot)
	}
	switch {
	case !cleanAbs(c.Socket):
		refuse("socket: %q is not a clean absolute path", c.Socket)
	case len(c.Socket) > maxSocket:
		refuse("socket: %q has %d bytes, a unix socket's path at most %d", c.Socket, len(c.Socket), maxSocket)
	}
	if a := c.Metrics.Address; a != "" {
		if err := checkAddress(a); err != nil {
			refuse("metrics.address: %q: %w; write host:port, or \"\" for none", a, err)
		}
	}
	for _, v := range []struct {
		key string
		err error
	}{
		{"log.level", oneOf(c.Log.Level, LogTrace, LogDebug, LogInfo, LogWarn, LogError)},
		{"log.format", oneOf(c.Log.Format, LogText, LogJSON)},
		{"snapshotter.protocol", oneOf(c.Snapshotter.Protocol, ProtocolAuto, ProtocolSequential, ProtocolEarlyMounts)},
	} {
		if v.err != nil {
			refuse("%s: %w", v.key, v.err)
		}
	}
	for _, d := range []struct {
		key   string
		value Duration
	}{
		{"stage.idle_timeout", c.Stage.IdleTimeout},
		{"stage.attach_wait", c.Stage.AttachWait},
	} {
		if d.value < 0 {
			refuse("%s: %s is negative, 0s or more is allowed", d.key, d.value)
		}
	}
	errs = append(append(append(errs, c.Stage.check()...), c.Catalog.check()...), c.ReadAhead.check()...)
	if d := c.Loop.Directory; d != "" && !cleanAbs(d) {
		refuse("loop.directory: %q is not a clean absolute path; \"\" is <root>/volumes", d)
	}
	errs = append(errs, checkDiscover(c.Discover)...)
	errs = append(errs, slices.Concat(c.Import.check(), c.Drivers.check())...)
	errs = append(errs, checkDisks(c.Disks, c.Drivers)...)
	errs = append(append(errs, c.ImageSnapshots.check(c.Drivers)...), c.Automatic.check()...)
	if _, err := c.Annotations(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s Stage) check() []error {
	var errs []error
	if s.RestoreTimeout <= 0 {
		errs = append(errs, fmt.Errorf("stage.restore_timeout: %s, must be more than 0s", s.RestoreTimeout))
	}
	if s.MinRate < 0 || s.MinRate > maxMinRate {
		errs = append(errs, fmt.Errorf("stage.min_rate: %d bytes a second are not within 0..%d; 0 takes every disk", s.MinRate, int64(maxMinRate)))
	}
	return errs
}

func (c Catalog) check() []error {
	var errs []error
	if d := c.Directory; d != "" && !cleanAbs(d) {
		errs = append(errs, fmt.Errorf("catalog.directory: %q is not a clean absolute path; \"\" is none", d))
	}
	if c.Interval < minInterval {
		errs = append(errs, fmt.Errorf("catalog.interval: %s, at least %s is allowed", c.Interval, minInterval))
	}
	if c.MaxDisks < 0 || c.MaxDisks > maxDisks {
		errs = append(errs, fmt.Errorf("catalog.max_disks: %d is not within 0..%d", c.MaxDisks, maxDisks))
	}
	if c.AttachCost < 0 || c.AttachCost > maxAttachCost {
		errs = append(errs, fmt.Errorf("catalog.attach_cost: %d is not within 0..%d", c.AttachCost, int64(maxAttachCost)))
	}
	return errs
}

func checkDiscover(d Discover) []error {
	var errs []error
	for _, e := range d.Expect {
		if err := e.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("discover.expect: %q: %w; \"berth inspect\" prints the index digest", e, err))
		}
	}
	for _, dir := range d.LoopsBelow {
		if !cleanAbs(dir) {
			errs = append(errs, fmt.Errorf("discover.loops_below: %q is not a clean absolute path", dir))
		}
	}
	return errs
}

func checkDisks(disks []Disk, drivers Drivers) []error {
	var errs []error
	names, sources := map[string]bool{}, map[source]string{}
	for i, d := range disks {
		refuse := func(err error) { errs = append(errs, fmt.Errorf("disk %d (%s): %w", i+1, d.Name, err)) }
		if err := checkDiskName(d.Name); err != nil {
			refuse(fmt.Errorf("name: %w", err))
		} else if names[d.Name] {
			refuse(fmt.Errorf("name: %q is used by another disk", d.Name))
		}
		names[d.Name] = true
		if err := checkSource(d, drivers); err != nil {
			refuse(err)
		}
		from := source{d.DriverName(), d.VolumeID(), d.VolumeSnapshot}
		if other, ok := sources[from]; ok && (from.volume != "" || from.snapshot != "") {
			refuse(fmt.Errorf("%q is also disk %q", cmp.Or(from.volume, from.snapshot), other))
		}
		sources[from] = d.Name
		if d.Expect != "" {
			if err := d.Expect.Validate(); err != nil {
				refuse(fmt.Errorf("expect: %q: %w; \"berth inspect\" prints the index digest", d.Expect, err))
			}
		}
	}
	return errs
}

// source is what a disk is on.
type source struct{ driver, volume, snapshot string }

func checkSource(d Disk, drivers Drivers) error {
	given := 0
	for _, s := range []string{d.Path, d.Volume, d.VolumeSnapshot} {
		if s != "" {
			given++
		}
	}
	loop := d.DriverName() == LoopDriver
	switch {
	case !drivers.has(d.DriverName()):
		return fmt.Errorf("driver: %q is not one of %s", d.Driver, strings.Join(drivers.names(), ", "))
	case given == 0:
		return errors.New("path or volume is required, or a snapshot")
	case given > 1:
		return errors.New("path, volume and snapshot exclude each other")
	case d.Path != "" && !loop:
		return fmt.Errorf("path: driver %s attaches volumes, name one as volume", d.Driver)
	case d.Path != "" && !cleanAbs(d.Path):
		return fmt.Errorf("path: %q is not a clean absolute path", d.Path)
	case filepath.IsAbs(d.Volume) && loop: // other drivers' IDs may look like paths, as Azure's do
		return fmt.Errorf("volume: %q is a path, write it as path", d.Volume)
	}
	return nil
}

// checkDiskName refuses early what the stage would refuse at the attempt to attach.
func checkDiskName(name string) error {
	if !diskName.MatchString(name) {
		return fmt.Errorf("%q is no disk name: 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit at both ends", name)
	}
	return nil
}

func cleanAbs(path string) bool { return filepath.IsAbs(path) && filepath.Clean(path) == path }

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is no number from 0 to 65535", port)
	}
	return nil
}
