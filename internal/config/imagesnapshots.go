package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// ImageSnapshots says how image snapshots are made and kept.
type ImageSnapshots struct {
	// Driver whose storage keeps those that are built from now on: LoopDriver or the name of a CSI driver. Those that
	// are there stay where they are.
	Driver string `toml:"driver"`
	// PublishDirectory is a directory of catalog entries in which other nodes find them; empty is none.
	PublishDirectory string `toml:"publish_directory"`
	// Store is the file that has them; empty is <root>/imagesnapshots.db.
	Store string `toml:"store"`
	// Quota is how many each owner may have; 0 is no limit.
	Quota int `toml:"quota"`
	// MaxImages of one image snapshot, 10 to 20.
	MaxImages int `toml:"max_images"`
	// MinSizeGiB, MaxSizeGiB and DefaultSizeGiB are those of a volume.
	MinSizeGiB     int `toml:"min_size_gib"`
	MaxSizeGiB     int `toml:"max_size_gib"`
	DefaultSizeGiB int `toml:"default_size_gib"`
	// KeepFailed is how long a failure is kept with its reason.
	KeepFailed Duration `toml:"keep_failed"`
	// ExpiredGrace is how long an expired one is Unavailable before it is deleted.
	ExpiredGrace Duration `toml:"expired_grace"`
	// UnusedAutomatic is how long an automatic one may go unused.
	UnusedAutomatic Duration `toml:"unused_automatic"`
	// ServeOldDuringUpdate lets nodes use the old content while an image snapshot is built anew, and after that failed.
	ServeOldDuringUpdate bool `toml:"serve_old_during_update"`
	// SweepInterval is the time between two searches for what crashes left in the storage.
	SweepInterval Duration `toml:"sweep_interval"`
	// Builds at once.
	Builds int `toml:"builds"`
	// BuildTimeout is for image snapshots that do not say, in whole minutes.
	BuildTimeout Duration `toml:"build_timeout"`
	// BuildCommand is the berth program; empty is the one beside berthd.
	BuildCommand string `toml:"build_command"`
	// BuildDirectory takes layers that have to wait for their turn; empty is <root>/builds.
	BuildDirectory string `toml:"build_directory"`
	// BuildMemoryMiB bounds the memory of one build.
	BuildMemoryMiB int `toml:"build_memory_mib"`
	// BuildCPUWeight is the share of one build in the processors, as in cgroups.
	BuildCPUWeight int `toml:"build_cpu_weight"`
	// BuildCgroup is a cgroup of version 2 that is left to berthd, for builds; empty is the one that systemd has left
	// to its service.
	BuildCgroup string `toml:"build_cgroup"`
	// SecretsDirectory has the credentials that registries name; empty is none.
	SecretsDirectory string `toml:"secrets_directory"`
	// HostsDirectory has containerd's hosts.toml files for builds; empty is none.
	HostsDirectory string `toml:"hosts_directory"`
}

func defaultImageSnapshots() ImageSnapshots {
	return ImageSnapshots{
		Driver: LoopDriver,
		Quota:  50, MaxImages: 10, MinSizeGiB: 20, MaxSizeGiB: 400, DefaultSizeGiB: 20,
		KeepFailed: Duration(24 * time.Hour), ExpiredGrace: Duration(10 * time.Minute),
		UnusedAutomatic: Duration(72 * time.Hour), SweepInterval: Duration(10 * time.Minute),
		Builds: 1, BuildTimeout: Duration(24 * time.Hour), BuildMemoryMiB: 2048, BuildCPUWeight: 50,
	}
}

// check names every key whose value cannot be used.
func (s *ImageSnapshots) check(drivers Drivers) []error {
	var errs []error
	refuse := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("image_snapshots.%s: %w", key, fmt.Errorf(format, args...)))
	}
	if _, isCSI := drivers.CSI[s.Driver]; !isCSI && s.Driver != LoopDriver {
		names := append([]string{LoopDriver}, slices.Sorted(maps.Keys(drivers.CSI))...)
		refuse("driver", "%q is not one of those that make volumes and volume snapshots: %s", s.Driver, strings.Join(names, ", "))
	}
	if s.PublishDirectory != "" && s.Driver == LoopDriver {
		refuse("publish_directory", "other nodes cannot attach what driver %q keeps in files of this one: name another driver, or leave this empty", LoopDriver)
	}
	const (
		minTimeout, maxTimeout = 30 * time.Minute, 10080 * time.Minute
		maxSize                = 1 << 16
	)
	for _, n := range []struct {
		key              string
		value, low, high int
	}{
		{"quota", s.Quota, 0, 1 << 20},
		{"max_images", s.MaxImages, 10, 20},
		{"min_size_gib", s.MinSizeGiB, 1, maxSize},
		{"max_size_gib", s.MaxSizeGiB, max(1, s.MinSizeGiB), maxSize},
		{"default_size_gib", s.DefaultSizeGiB, s.MinSizeGiB, s.MaxSizeGiB},
		{"builds", s.Builds, 1, 64},
		{"build_memory_mib", s.BuildMemoryMiB, 256, 1 << 20},
		{"build_cpu_weight", s.BuildCPUWeight, 1, 10000},
	} {
		if n.value < n.low || n.value > n.high {
			refuse(n.key, "%d is not from %d to %d", n.value, n.low, n.high)
		}
	}
	if t := s.BuildTimeout.Std(); t < minTimeout || t > maxTimeout || t%time.Minute != 0 {
		refuse("build_timeout", "%s is not from %s to %s in whole minutes", s.BuildTimeout, minTimeout, maxTimeout)
	}
	for _, d := range []struct {
		key   string
		value Duration
	}{
		{"keep_failed", s.KeepFailed}, {"expired_grace", s.ExpiredGrace}, {"unused_automatic", s.UnusedAutomatic}, {"sweep_interval", s.SweepInterval},
	} {
		if d.value < Duration(time.Second) {
			refuse(d.key, "%s is less than 1s", d.value)
		}
	}
	for _, p := range []struct{ key, value string }{
		{"store", s.Store}, {"publish_directory", s.PublishDirectory}, {"build_command", s.BuildCommand}, {"build_directory", s.BuildDirectory}, {"build_cgroup", s.BuildCgroup},
		{"secrets_directory", s.SecretsDirectory}, {"hosts_directory", s.HostsDirectory},
	} {
		if p.value != "" && !cleanAbs(p.value) {
			refuse(p.key, "%q is not a clean absolute path", p.value)
		}
	}
	return errs
}
