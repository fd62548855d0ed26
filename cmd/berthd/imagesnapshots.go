package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/automatic"
	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/imagesnapshot/catalog/publisher"
	"berth.dev/berth/imagesnapshot/catalog/storelister"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/matcher/dialect"
	"berth.dev/berth/readahead/accesslist"
)

// imageSnapshots is all that makes and keeps image snapshots.
type imageSnapshots struct {
	store  *boltstore.Store
	engine *lifecycle.Engine
	// service is there after serveWith.
	service *imagesnapshotservice.Service
	// oldDuringUpdate is storelister.Config's.
	oldDuringUpdate bool
	// automatic is nil if it is switched off.
	automatic *automatic.Maker
	// publish, if not nil, tells other nodes. published is where it notes that, and publishDirectory where it does it.
	publish                     *publisher.Mirror
	published, publishDirectory string
}

// openImageSnapshots does nothing outside the store yet; run does.
func openImageSnapshots(ctx context.Context, c config.Config, backends map[string]lifecycle.Backend, registry prometheus.Registerer) (_ *imageSnapshots, err error) {
	cfg := c.ImageSnapshots
	s := &imageSnapshots{oldDuringUpdate: cfg.ServeOldDuringUpdate}
	if s.store, err = boltstore.Open(cmp.Or(cfg.Store, filepath.Join(c.Root, "imagesnapshots.db"))); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			joinClose(&err, s.store)
		}
	}()
	builder, err := openBuilder(ctx, c)
	if err != nil {
		return nil, err
	}
	s.published, s.publishDirectory = publishedDir(c.Root), cfg.PublishDirectory
	if s.publish, err = s.publisher(c); err != nil {
		return nil, err
	}
	life := registerLife(registry)
	s.engine, err = lifecycle.New(lifecycle.Config{
		Store: s.store, Watcher: s.store, Indexes: s.store, AccessLists: s.store, Builder: builder,
		Backends: backends, Driver: cfg.Driver, LegacyDriver: config.LoopDriver,
		Installation: s.store.Installation(), MaxBuilds: cfg.Builds,
		Limits: limitsOf(c),
		Times: lifecycle.Times{
			KeepFailed: cfg.KeepFailed.Std(), ExpiredGrace: cfg.ExpiredGrace.Std(),
			UnusedAutomatic: cfg.UnusedAutomatic.Std(), Sweep: cfg.SweepInterval.Std(),
		},
		Observer: lifeObserver{life},
	})
	if err != nil {
		return nil, fmt.Errorf("image snapshots: %w", err)
	}
	if s.automatic, err = openAutomatic(c.Automatic, s.engine, builder, life.Automatic); err != nil {
		return nil, err
	}
	registerTotals(context.WithoutCancel(ctx), registry, s.store, cfg.Quota)
	return s, ctx.Err()
}

// limitsOf image snapshots that a configuration sets.
func limitsOf(c config.Config) imagesnapshot.Limits {
	cfg := c.ImageSnapshots
	return imagesnapshot.Limits{
		MaxImages: cfg.MaxImages, MinSizeGiB: cfg.MinSizeGiB, MaxSizeGiB: cfg.MaxSizeGiB, DefaultSizeGiB: cfg.DefaultSizeGiB,
		MaxPerOwner: cfg.Quota, MaxAutomatic: c.Automatic.Quota, DefaultTimeoutMinutes: int(cfg.BuildTimeout.Std() / time.Minute),
	}
}

// publisher tells other nodes of what they can attach too; nil without a directory to do that in.
func (s *imageSnapshots) publisher(c config.Config) (*publisher.Mirror, error) {
	if c.ImageSnapshots.PublishDirectory == "" {
		return nil, nil
	}
	to, err := directory.Open(c.ImageSnapshots.PublishDirectory, c.Catalog.Interval.Std())
	if err != nil {
		return nil, err
	}
	return publisher.New(publisher.Config{
		From: s.catalog(), To: to, Lists: s.store.AccessLists, ListsTo: to, Target: c.ImageSnapshots.PublishDirectory, Records: publishedDir(c.Root),
		Useful: func(e *catalog.Entry) bool { return e.HasDisk() && e.Source.Driver != config.LoopDriver },
	}), nil
}

// catalog lists what there is for nodes.
func (s *imageSnapshots) catalog() catalog.Lister {
	return storelister.New(storelister.Config{
		Store: s.store, Watcher: s.store, Indexes: s.store, LegacyDriver: config.LoopDriver, OldDuringUpdate: s.oldDuringUpdate,
	})
}

// serveWith makes the service. What matches is fleet, which knows other catalogs too.
func (s *imageSnapshots) serveWith(fleet imagesnapshotservice.Fleet) {
	s.service = imagesnapshotservice.New(s.engine, s.store, fleet, dialect.Builtin()).WithAccessLists(s)
}

// PutAccessList keeps a list, and tells other nodes.
func (s *imageSnapshots) PutAccessList(ctx context.Context, id string, l *accesslist.List) error {
	if err := s.store.PutAccessList(ctx, id, l); err != nil {
		return err
	}
	if s.publish != nil {
		s.publish.TouchLists(id)
	}
	return nil
}

// AccessLists of an image snapshot.
func (s *imageSnapshots) AccessLists(ctx context.Context, id string) ([]*accesslist.List, error) {
	return s.store.AccessLists(ctx, id)
}

// AccessListsOn are those of the image snapshots that have this disk.
func (s *imageSnapshots) AccessListsOn(ctx context.Context, disk digest.Digest, image string) ([]*accesslist.List, []string, error) {
	return s.store.AccessListsOn(ctx, disk, image)
}

// openBuilder wants the berth program beside berthd where none is named.
func openBuilder(ctx context.Context, c config.Config) (*buildproc.Builder, error) {
	cfg := c.ImageSnapshots
	command := cfg.BuildCommand
	if command == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the program of builds: %w", err)
		}
		command = filepath.Join(filepath.Dir(self), "berth")
	}
	cgroup, err := buildproc.MoveToSubgroup(cfg.BuildCgroup)
	if err != nil {
		entry := log.G(ctx).WithError(err)
		if errdefs.IsNotFound(err) {
			entry.Info("builds are limited by their priority and the size of their memory, not by a cgroup")
		} else {
			entry.Warn("builds have no cgroup: they are limited by their priority and the size of their memory")
		}
	}
	bc := buildproc.Config{
		Command: []string{command}, TempDir: cmp.Or(cfg.BuildDirectory, filepath.Join(c.Root, "builds")), Cgroup: cgroup,
		CPUWeight: cfg.BuildCPUWeight, MemoryBytes: int64(cfg.BuildMemoryMiB) << 20, HostsDir: cfg.HostsDirectory,
	}
	if cfg.SecretsDirectory != "" {
		bc.Secrets = buildproc.SecretDir(cfg.SecretsDirectory)
	}
	return buildproc.Open(bc)
}

// run works until ctx ends. A store that fails stops only image snapshots: no container may fail to start for want of
// them.
func (s *imageSnapshots) run(ctx context.Context) {
	type part struct {
		name string
		run  func(context.Context) error
	}
	parts := []part{{"life cycle", s.engine.Run}, {"publishing", s.runPublishing}}
	if s.automatic != nil {
		parts = append(parts, part{"automatic creation", s.automatic.Run})
	}
	var wg sync.WaitGroup
	for _, part := range parts {
		wg.Go(func() {
			if err := part.run(ctx); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).WithField("part", part.name).Error("image snapshots stand still until the next start")
			}
		})
	}
	wg.Wait()
}

// recorder notes uses; it works without image snapshots too.
func (s *imageSnapshots) recorder() matchRecorder {
	if s == nil {
		return noRecorder{}
	}
	return s.engine
}

// noteDiskFailure writes an event of an image snapshot that is kept here; others have no place for it.
func (s *imageSnapshots) noteDiskFailure(ctx context.Context, name, id, message string) error {
	if s == nil {
		return nil
	}
	err := s.engine.Note(ctx, name, id, imagesnapshot.EventWarning, imagesnapshot.ReasonDiskFailed, message)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// maker of automatic ones, nil if there is none.
func (s *imageSnapshots) maker() *automatic.Maker {
	if s == nil {
		return nil
	}
	return s.automatic
}

type noRecorder struct{}

func (noRecorder) RecordMatch(string, string) {}

// Close is for after run.
func (s *imageSnapshots) Close() error { return s.store.Close() }
