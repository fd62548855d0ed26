package daemon

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/assembly"
	"berth.dev/berth/imagesnapshot/automatic"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/internal/boltfile"
	"berth.dev/berth/internal/config"
)

// openImageSnapshots does nothing outside the store yet. A store that fails is logged only: no container may fail to
// start for want of image snapshots.
func openImageSnapshots(ctx context.Context, n *node) error {
	kept, err := keepImageSnapshots(ctx, n)
	if err != nil {
		log.G(ctx).WithError(err).Error("serving without image snapshots of this node's own, repair their store and restart")
		return nil
	}
	n.kept, n.uses = kept, kept
	return nil
}

func keepImageSnapshots(ctx context.Context, n *node) (_ *assembly.ImageSnapshots, err error) {
	c := &n.config
	if n.annotations, err = c.Annotations(); err != nil {
		return nil, err
	}
	file := cmp.Or(c.ImageSnapshots.Store, filepath.Join(c.Root, "imagesnapshots.db"))
	if err := boltfile.Check(file); err != nil {
		return nil, err
	}
	stores, err := assembly.OpenFile(file)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stores.Closer.Close())
		}
	}()
	builder, err := assembly.OpenBuilder(ctx, buildsOf(c))
	if err != nil {
		return nil, err
	}
	options := imageSnapshotOptions(c)
	options.Stores, options.Builder, options.Registry = stores, builder, n.registry
	options.Storage = assembly.Storage{
		Backends: assembly.Backends(n.drivers.All()), Driver: c.ImageSnapshots.Driver, LegacyDriver: config.LoopDriver,
	}
	return assembly.Open(ctx, options)
}

// serveImageSnapshots makes their service. What matches is the chooser, which knows other catalogs too.
func serveImageSnapshots(n *node) {
	if n.kept != nil {
		n.imageSnapshots = imagesnapshotservice.New(n.kept.Engine(), n.kept, n.chooser, n.annotations).WithAccessLists(n.kept)
	}
}

func runImageSnapshots(ctx context.Context, n *node) {
	if n.kept != nil {
		n.kept.Run(ctx)
	}
}

func closeImageSnapshots(n *node) error {
	if n.kept == nil {
		return nil
	}
	return n.kept.Close()
}

// imageSnapshotOptions is what the configuration says of them.
func imageSnapshotOptions(c *config.Config) assembly.Options {
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
func limitsOf(c *config.Config) imagesnapshot.Limits {
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
func buildsOf(c *config.Config) assembly.Builds {
	cfg := c.ImageSnapshots
	return assembly.Builds{
		Command: cfg.BuildCommand, Directory: cmp.Or(cfg.BuildDirectory, filepath.Join(c.Root, "builds")), Cgroup: cfg.BuildCgroup,
		CPUWeight: cfg.BuildCPUWeight, MemoryBytes: int64(cfg.BuildMemoryMiB) << 20, HostsDirectory: cfg.HostsDirectory,
		SecretsDirectory: cfg.SecretsDirectory,
	}
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

var _ uses = (*assembly.ImageSnapshots)(nil)

// noUses is for a node that keeps no image snapshots.
type noUses struct{}

func (noUses) RecordMatch(string, string)                                    {}
func (noUses) Wanted(string, digest.Digest)                                  {}
func (noUses) NoteDiskFailure(context.Context, string, string, string) error { return nil }
