package main

import (
	"cmp"
	"context"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/blockdev/drivers"
	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/assembly"
	"berth.dev/berth/imagesnapshot/automatic"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/matcher/dialect"
)

// imageSnapshots are those that this node keeps.
type imageSnapshots struct {
	*assembly.ImageSnapshots
	// annotations says how pods are read.
	annotations dialect.Settings
	// service is there after serveWith.
	service *imagesnapshotservice.Service
}

// openImageSnapshots does nothing outside the store yet; Run does.
func openImageSnapshots(ctx context.Context, c config.Config, all map[string]drivers.Driver, registry prometheus.Registerer) (_ *imageSnapshots, err error) {
	annotations, err := c.Annotations()
	if err != nil {
		return nil, err
	}
	stores, err := assembly.OpenFile(cmp.Or(c.ImageSnapshots.Store, filepath.Join(c.Root, "imagesnapshots.db")))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			joinClose(&err, stores.Closer)
		}
	}()
	builder, err := assembly.OpenBuilder(ctx, buildsOf(c))
	if err != nil {
		return nil, err
	}
	options := imageSnapshotOptions(c)
	options.Stores, options.Builder, options.Registry = stores, builder, registry
	options.Storage = assembly.Storage{Backends: assembly.Backends(all), Driver: c.ImageSnapshots.Driver, LegacyDriver: config.LoopDriver}
	s, err := assembly.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	return &imageSnapshots{ImageSnapshots: s, annotations: annotations}, nil
}

// imageSnapshotOptions is what the configuration says of them.
func imageSnapshotOptions(c config.Config) assembly.Options {
	cfg := c.ImageSnapshots
	return assembly.Options{
		Limits: limitsOf(c), MaxBuilds: cfg.Builds, OldDuringUpdate: cfg.ServeOldDuringUpdate, Automatic: automaticOf(c.Automatic),
		Times: lifecycle.Times{
			KeepFailed: cfg.KeepFailed.Std(), ExpiredGrace: cfg.ExpiredGrace.Std(),
			UnusedAutomatic: cfg.UnusedAutomatic.Std(), Sweep: cfg.SweepInterval.Std(),
		},
		Publishing: assembly.Publishing{
			Directory: cfg.PublishDirectory, Interval: c.Catalog.Interval.Std(), Records: filepath.Join(c.Root, "published"),
			LocalDrivers: []string{config.LoopDriver},
		},
	}
}

// limitsOf image snapshots that a configuration sets.
func limitsOf(c config.Config) imagesnapshot.Limits {
	cfg := c.ImageSnapshots
	return imagesnapshot.Limits{
		MaxImages: cfg.MaxImages, MinSizeGiB: cfg.MinSizeGiB, MaxSizeGiB: cfg.MaxSizeGiB, DefaultSizeGiB: cfg.DefaultSizeGiB,
		MaxPerOwner: cfg.Quota, MaxAutomatic: c.Automatic.Quota, DefaultTimeoutMinutes: int(cfg.BuildTimeout.Std() / time.Minute),
	}
}

// automaticOf is nil if no image snapshots are made of what pulls want.
func automaticOf(c config.Automatic) *automatic.Config {
	if !c.Enabled {
		return nil
	}
	cfg := &automatic.Config{
		Owner: c.Owner, Allow: c.Allow, Deny: c.Deny, MinBytes: int64(c.MinImageMiB) << 20, Delay: c.Delay.Std(), Retry: c.Retry.Std(),
	}
	for _, r := range c.Registries {
		cfg.Registries = append(cfg.Registries, imagesnapshot.Registry{
			Server: r.Server, Secret: r.Secret, PlainHTTP: r.PlainHTTP, InsecureSkipVerify: r.InsecureSkipVerify,
		})
	}
	return cfg
}

// buildsOf image snapshots, as the configuration limits them.
func buildsOf(c config.Config) assembly.Builds {
	cfg := c.ImageSnapshots
	return assembly.Builds{
		Command: cfg.BuildCommand, Directory: cmp.Or(cfg.BuildDirectory, filepath.Join(c.Root, "builds")), Cgroup: cfg.BuildCgroup,
		CPUWeight: cfg.BuildCPUWeight, MemoryBytes: int64(cfg.BuildMemoryMiB) << 20, HostsDirectory: cfg.HostsDirectory,
		SecretsDirectory: cfg.SecretsDirectory,
	}
}

// serveWith makes the service. What matches is fleet, which knows other catalogs too.
func (s *imageSnapshots) serveWith(fleet imagesnapshotservice.Fleet) {
	s.service = imagesnapshotservice.New(s.Engine(), s, fleet, s.annotations).WithAccessLists(s)
}

// uses gets what is noted of image snapshots while a node works.
type uses interface {
	// RecordMatch notes that one was of use; what is of no use for long may be deleted.
	RecordMatch(name, id string)
	// Wanted notes an image that a pull wants and no image snapshot has.
	Wanted(ref string, manifest digest.Digest)
	// NoteDiskFailure notes that the disk of one is out of service.
	NoteDiskFailure(ctx context.Context, name, id, message string) error
}

var _ uses = (*imageSnapshots)(nil)

// noUses is for a node that keeps no image snapshots.
type noUses struct{}

func (noUses) RecordMatch(string, string)                                    {}
func (noUses) Wanted(string, digest.Digest)                                  {}
func (noUses) NoteDiskFailure(context.Context, string, string, string) error { return nil }
