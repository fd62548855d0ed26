// Package assembly joins the parts that make, keep and offer image snapshots: store, builds, life cycle, automatic
// creation, catalog and publishing. berthd is one program that uses it. A cluster's controller or the front end of a
// vendor can be another, with a store and storage of its own.
//
// Its options are its own and not those of a configuration file: a program that keeps image snapshots for a cluster has
// no node, no root directory and none of the other things that berthd's file is about. cmd/berthd says what a section
// of that file means here.
package assembly

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/automatic"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/publisher"
	"berth.dev/berth/imagesnapshot/catalog/storelister"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/readahead/accesslist"
)

// Options of Open.
type Options struct {
	Stores  Stores
	Builder lifecycle.Builder
	Storage Storage
	Limits  imagesnapshot.Limits
	Times   lifecycle.Times
	// MaxBuilds at once; 0 is 1.
	MaxBuilds int
	// OldDuringUpdate lets nodes choose the old content while an image snapshot is updated, and after an update that
	// failed.
	OldDuringUpdate bool
	// Publishing announces the image snapshots to other nodes. Without a directory it announces nothing.
	Publishing Publishing
	// Automatic, if not nil, makes image snapshots of images that pulls want. Open sets its Engine, Planner and
	// Observer.
	Automatic *automatic.Config
	// Registry gets the metrics. If it is nil, there are no metrics.
	Registry prometheus.Registerer
}

// Storage is the block storage that image snapshots are kept in.
type Storage struct {
	// Backends by the names of their drivers, as nodes name them too.
	Backends map[string]lifecycle.Backend
	// Driver is the name of the one that builds use from now on.
	Driver string
	// LegacyDriver is the driver of image snapshots that name no driver.
	LegacyDriver string
}

// ImageSnapshots is all that makes, keeps and offers image snapshots. It is safe for concurrent use.
type ImageSnapshots struct {
	stores  Stores
	engine  *lifecycle.Engine
	catalog *storelister.Catalog
	// automatic is nil if it is switched off.
	automatic  *automatic.Maker
	publishing Publishing
	// publisher is nil if image snapshots are not published to other nodes.
	publisher *publisher.Publisher
}

var _ store.AccessLists = (*ImageSnapshots)(nil)

// Open joins the parts. They do nothing outside the store before Run. If it fails, the stores are the
// caller's to close; otherwise Close closes them.
func Open(ctx context.Context, o Options) (*ImageSnapshots, error) {
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	s := &ImageSnapshots{stores: o.Stores, publishing: o.Publishing}
	s.catalog = storelister.New(storelister.Config{
		Store: o.Stores.Objects, Watcher: o.Stores.Watcher, Indexes: o.Stores.Indexes,
		LegacyDriver: o.Storage.LegacyDriver, OldDuringUpdate: o.OldDuringUpdate,
	})
	var err error
	if s.publisher, err = o.Publishing.open(s.catalog, o.Stores.AccessLists); err != nil {
		return nil, err
	}
	observer := observe(o.Registry)
	s.engine, err = lifecycle.New(lifecycle.Config{
		Store: o.Stores.Objects, Watcher: o.Stores.Watcher, Indexes: o.Stores.Indexes, AccessLists: o.Stores.AccessLists,
		Builder: o.Builder, Backends: o.Storage.Backends, Driver: o.Storage.Driver, LegacyDriver: o.Storage.LegacyDriver,
		Installation: o.Stores.Installation, MaxBuilds: o.MaxBuilds, Limits: o.Limits, Times: o.Times, Observer: observer,
	})
	if err != nil {
		return nil, fmt.Errorf("image snapshots: %w", err)
	}
	if o.Automatic != nil {
		cfg := *o.Automatic
		cfg.Engine, cfg.Planner, cfg.Observer = s.engine, o.Builder, observer.automatic
		if s.automatic, err = automatic.New(cfg); err != nil {
			return nil, err
		}
	}
	registerTotals(context.WithoutCancel(ctx), o.Registry, o.Stores.Objects, o.Limits.MaxPerOwner)
	return s, ctx.Err()
}

// Engine is the life cycle.
func (s *ImageSnapshots) Engine() *lifecycle.Engine { return s.engine }

// Catalog lists the image snapshots for nodes.
func (s *ImageSnapshots) Catalog() catalog.Lister { return s.catalog }

// Run works until ctx ends. A part that fails ends alone, with an error in the log: a node starts containers without
// image snapshots too.
func (s *ImageSnapshots) Run(ctx context.Context) {
	type part struct {
		name string
		run  func(context.Context) error
	}
	parts := []part{{"life cycle", s.engine.Run}, {"publishing", s.publish}}
	if s.automatic != nil {
		parts = append(parts, part{"automatic creation", s.automatic.Run})
	}
	var wg sync.WaitGroup
	for _, part := range parts {
		wg.Go(func() {
			if err := part.run(ctx); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).WithField("part", part.name).Error("a part of image snapshots has stopped; it runs again after a restart")
			}
		})
	}
	wg.Wait()
}

// Close closes the stores. It is for after Run.
func (s *ImageSnapshots) Close() error {
	if s.stores.Closer == nil {
		return nil
	}
	return s.stores.Closer.Close()
}

// List returns the image snapshots that the filter lets through, by name.
func (s *ImageSnapshots) List(ctx context.Context, f store.Filter) ([]*imagesnapshot.ImageSnapshot, error) {
	return s.stores.Objects.List(ctx, f)
}

// Watch implements store.Watcher.
func (s *ImageSnapshots) Watch(ctx context.Context) (<-chan store.Change, error) {
	return s.stores.Watcher.Watch(ctx)
}

// PutAccessList keeps a list, and has it published.
func (s *ImageSnapshots) PutAccessList(ctx context.Context, id string, l *accesslist.List) error {
	if err := s.stores.AccessLists.PutAccessList(ctx, id, l); err != nil {
		return err
	}
	if s.publisher != nil {
		s.publisher.TouchLists(id)
	}
	return nil
}

// AccessLists implements store.AccessLists.
func (s *ImageSnapshots) AccessLists(ctx context.Context, id string) ([]*accesslist.List, error) {
	return s.stores.AccessLists.AccessLists(ctx, id)
}

// AccessListsOn implements store.AccessLists.
func (s *ImageSnapshots) AccessListsOn(ctx context.Context, disk digest.Digest, image string) ([]*accesslist.List, []string, error) {
	return s.stores.AccessLists.AccessListsOn(ctx, disk, image)
}

// RecordMatch notes that an image snapshot was of use for a pull.
func (s *ImageSnapshots) RecordMatch(name, id string) { s.engine.RecordMatch(name, id) }

// Wanted notes that a pull wants an image that no image snapshot has, which then gets one if that is switched on; see
// automatic.Maker.
func (s *ImageSnapshots) Wanted(ref string, manifest digest.Digest) {
	if s.automatic != nil {
		s.automatic.Wanted(ref, manifest)
	}
}

// NoteDiskFailure writes an event of an image snapshot that is kept here. Those of other catalogs have no place for it.
func (s *ImageSnapshots) NoteDiskFailure(ctx context.Context, name, id, message string) error {
	err := s.engine.Note(ctx, name, id, imagesnapshot.EventWarning, imagesnapshot.ReasonDiskFailed, message)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
