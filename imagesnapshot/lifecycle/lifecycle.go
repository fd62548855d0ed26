// Package lifecycle makes image snapshots happen: it takes them from what a user asked for to a volume snapshot in the
// storage, and down again.
//
// One Engine owns all image snapshots of a store. Its methods are the use cases of every front end; they only write to
// the store. Run does the work: for each image snapshot one goroutine at a time, which takes one step after another. A
// step gets the image snapshot and the storage that its work is in, and returns a decision: what to write, and when to
// look again. One loop, reconciler, looks the storage up, writes, and decides what becomes of a failure.
//
// Before a step does anything outside the store, what it is going to do stands in Status.Work, and every step can be
// repeated; so a process that is killed between any two instructions is followed by one that goes on, and nothing in
// the storage is without an owner for long. What a crash leaves in the storage without a journal, Sweep finds by its
// name.
//
// The rules by which all this is decided are functions of package policy. No lock is held while the storage, a registry
// or a build is waited for.
package lifecycle

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// Config of an Engine.
type Config struct {
	Store   store.Store
	Watcher store.Watcher
	Indexes store.Indexes
	// AccessLists, if not nil, say which files builds place together.
	AccessLists store.AccessLists

	// Backends are the storage that image snapshots may be in, by the names of its drivers.
	Backends map[string]Backend
	// Driver is the name of the one that builds use from now on. What is in the others stays usable and can be deleted.
	Driver string
	// LegacyDriver is the driver of image snapshots that name none, which are from before there was a choice.
	LegacyDriver string
	Builder      Builder

	// Installation is a UUID that tells our volumes and volume snapshots from those of other installations on the same
	// storage.
	Installation string
	Limits       imagesnapshot.Limits
	// MaxBuilds at once; 0 is 1.
	MaxBuilds int
	Times     Times
	// Observer may be nil.
	Observer Observer
}

// Times are the periods of a life; zero fields are the defaults in their comments.
type Times struct {
	// KeepFailed is how long a failure is kept with its reason: a day.
	KeepFailed time.Duration
	// ExpiredGrace is how long an expired one is Unavailable before it is deleted, so that nodes learn of it: 10
	// minutes.
	ExpiredGrace time.Duration
	// UnusedAutomatic is how long an automatic one may go unused: 3 days (E-30).
	UnusedAutomatic time.Duration
	// Sweep is the time between two sweeps: 10 minutes.
	Sweep time.Duration
	// FlushMatches is how long matches are collected before they are written: 30 seconds.
	FlushMatches time.Duration
}

func (t Times) withDefaults() Times {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.KeepFailed, 24 * time.Hour},
		{&t.ExpiredGrace, 10 * time.Minute},
		{&t.UnusedAutomatic, 72 * time.Hour},
		{&t.Sweep, 10 * time.Minute},
		{&t.FlushMatches, 30 * time.Second},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return t
}

// Engine is the life cycle of all image snapshots of one store.
type Engine struct {
	objects  objects
	watcher  store.Watcher
	limits   imagesnapshot.Limits
	times    Times
	driver   string
	observer Observer

	quotas     *quotas
	matches    *matches
	sweeper    *sweeper
	reconciler *reconciler
	queue      *queue
}

// New checks the configuration. It does nothing else; Run works.
func New(cfg Config) (*Engine, error) {
	if err := cfg.Limits.Check(); err != nil {
		return nil, err
	}
	n, err := newNames(cfg.Installation)
	if err != nil {
		return nil, err
	}
	if cfg.MaxBuilds < 0 {
		return nil, fmt.Errorf("%d builds at once: %w", cfg.MaxBuilds, errdefs.ErrInvalidArgument)
	}
	cfg.Times = cfg.Times.withDefaults()
	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}
	e := &Engine{
		objects: objects{cfg.Store}, watcher: cfg.Watcher, limits: cfg.Limits, times: cfg.Times, driver: cfg.Driver,
		observer: cfg.Observer, matches: newMatches(objects{cfg.Store}),
	}
	b := backends{all: cfg.Backends, builds: cfg.Driver, legacy: cfg.LegacyDriver}
	kept := &indexes{kept: cfg.Indexes, objects: cfg.Store, contents: newContents()}
	e.quotas = &quotas{objects: e.objects, limits: cfg.Limits}
	e.sweeper = &sweeper{
		objects: e.objects, backends: b, names: n, disposal: disposal{b}, indexes: kept, keepFailed: cfg.Times.KeepFailed,
	}
	e.reconciler = newReconciler(cfg, e, b, n, kept)
	e.queue = &queue{tasks: make(map[string]*task), reconcile: e.reconciler.reconcile}
	return e, nil
}

// Run works until ctx ends, and then returns nil when everything it started has stopped; what was going on is taken up
// by the next Run. An error means that the store failed, and nothing runs any more then either. There must be one Run
// at a time for a store.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer e.queue.wait()
	defer cancel()
	changes, err := e.watcher.Watch(ctx)
	if err != nil {
		return fmt.Errorf("run image snapshot life cycle: %w", err)
	}
	sweep := time.NewTicker(e.times.Sweep)
	defer sweep.Stop()
	flush := time.NewTicker(e.times.FlushMatches)
	defer flush.Stop()
	e.queue.work.Go(func() { e.sweepAndLog(ctx, true) })
	for {
		select {
		case c, ok := <-changes:
			if !ok && ctx.Err() == nil {
				return fmt.Errorf("run image snapshot life cycle: the store ended the watch: %w", errdefs.ErrUnavailable)
			}
			if ok {
				e.queue.changed(ctx, c)
			}
		case <-sweep.C:
			e.queue.work.Go(func() { e.sweepAndLog(ctx, false) })
		case <-flush.C:
			e.flushMatches(ctx)
		case <-ctx.Done():
			const lastWrites = 5 * time.Second
			last, done := context.WithTimeout(context.WithoutCancel(ctx), lastWrites)
			defer done()
			e.flushMatches(last)
			return nil
		}
	}
}

func (e *Engine) flushMatches(ctx context.Context) {
	if err := e.matches.flush(ctx); err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).Warn("matches of image snapshots are not recorded yet")
	}
}

// sweepAndLog is the sweep that Run does now and then, the first time of all drivers.
func (e *Engine) sweepAndLog(ctx context.Context, first bool) {
	report, err := e.sweeper.sweep(ctx, true, first)
	e.observer.Swept(report)
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).Warn("sweep did not look at everything in the storage")
	}
	for _, l := range report.Orphans {
		log.G(ctx).WithFields(log.Fields{
			"driver": l.Driver, "volume": l.VolumeID, "volume_name": l.VolumeName,
			"volume_snapshot": l.VolumeSnapshotID, "volume_snapshot_name": l.VolumeSnapshotName,
		}).Warn("found something of ours in the storage that no image snapshot refers to")
	}
	for _, name := range report.Lost {
		log.G(ctx).WithField("image_snapshot", name).Error("volume snapshot is gone from the storage")
	}
}

// Sweep compares the storage of all drivers with the store. Orphans are deleted if remove says so; whatever has not
// exactly a name that this installation gives is left alone. Image snapshots whose volume snapshots are gone become
// Unavailable. A driver that refuses does not keep the others from being looked at.
func (e *Engine) Sweep(ctx context.Context, remove bool) (SweepReport, error) {
	return e.sweeper.sweep(ctx, remove, true)
}

// Find returns the image snapshot with a name or an ID, or NotFound. A name wins.
func (e *Engine) Find(ctx context.Context, nameOrID string) (*imagesnapshot.ImageSnapshot, error) {
	return e.objects.find(ctx, nameOrID)
}

// RecordMatch notes that an image snapshot was chosen for a pull, in its status a little later.
func (e *Engine) RecordMatch(name, id string) {
	e.observer.Matched()
	e.matches.record(name, id)
}
