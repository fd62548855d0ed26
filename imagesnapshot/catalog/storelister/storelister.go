// Package storelister is the catalog of a store of image snapshots. Each of them is an entry; it has no disk as long as
// there is none that nodes may attach. The catalog changes as the store does, and nobody else publishes in it.
package storelister

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/layerdisk"
)

// Config of a Catalog.
type Config struct {
	Store   store.Store
	Watcher store.Watcher
	Indexes store.Indexes
	// LegacyDriver is the driver with which nodes attach disks whose image snapshots name no driver.
	LegacyDriver string
	// OldDuringUpdate keeps what an image snapshot had available while it is updated, and after an update that failed.
	OldDuringUpdate bool
}

// Catalog of a store. It is safe for concurrent use.
type Catalog struct {
	cfg Config
}

var _ catalog.Lister = (*Catalog)(nil)

// New makes a catalog. It does nothing until Watch.
func New(cfg Config) *Catalog { return &Catalog{cfg: cfg} }

// Watch implements catalog.Lister.
func (c *Catalog) Watch(ctx context.Context) (<-chan catalog.Change, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("watch catalog of the store: %w", err)
	}
	// Watching begins before the listing, so that nothing falls between them.
	changes, err := c.cfg.Watcher.Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch catalog of the store: %w", err)
	}
	all, err := c.cfg.Store.List(ctx, store.Filter{})
	if err != nil {
		return nil, fmt.Errorf("list catalog of the store: %w", err)
	}
	w := &watch{Config: c.cfg, out: make(chan catalog.Change), sent: make(map[string]summary)}
	go w.run(ctx, all, changes)
	return w.out, nil
}

// summary is an entry without its index. Most changes of an image snapshot, such as its being matched, change nothing
// of it.
type summary struct {
	id, name, state  string
	created, expires time.Time
	source           catalog.Source
	identity         layerdisk.Identity
	// images are joined by newlines; empty if there is a disk.
	images string
	// broken says that it could not be sent for want of its index.
	broken bool
}

type watch struct {
	Config
	out  chan catalog.Change
	sent map[string]summary // by name
}

func (w *watch) run(ctx context.Context, all []*imagesnapshot.ImageSnapshot, changes <-chan store.Change) {
	defer close(w.out)
	for _, s := range all {
		if !w.tell(ctx, s, false) {
			return
		}
	}
	if !w.send(ctx, catalog.Change{Synced: true}) {
		return
	}
	// Store.Watch says again what was listed, and may say what was before: a change that is undone by a later one.
	for change := range changes {
		if !w.tell(ctx, change.Object, change.Deleted) {
			return
		}
	}
}

func (w *watch) send(ctx context.Context, c catalog.Change) bool {
	select {
	case w.out <- c:
		return true
	case <-ctx.Done():
		return false
	}
}

// tell sends what has changed in an image snapshot. It returns false at the end.
func (w *watch) tell(ctx context.Context, s *imagesnapshot.ImageSnapshot, deleted bool) bool {
	last, known := w.sent[s.Name]
	now := w.summaryOf(s)
	if known && (deleted || last.id != now.id) {
		delete(w.sent, s.Name)
		if !last.broken && !w.send(ctx, catalog.Change{Entry: &catalog.Entry{ID: last.id}, Deleted: true}) {
			return false
		}
		known = false
	}
	if deleted || known && !last.broken && last == now {
		return true
	}
	e := &catalog.Entry{Name: now.name, ID: now.id, State: now.state, Created: now.created, Expires: now.expires, Source: now.source}
	if now.images != "" {
		e.Images = strings.Split(now.images, "\n")
		w.sent[s.Name] = now
		return w.send(ctx, catalog.Change{Entry: e})
	}
	var err error
	e.Index, err = w.Indexes.GetIndex(ctx, now.identity.IndexDigest)
	if err != nil {
		if !w.forget(ctx, last, known) {
			return false
		}
		now.broken = true
		w.sent[s.Name] = now
		return w.send(ctx, catalog.Change{Problem: fmt.Errorf("image snapshot %s is left out: %w", s.Name, err)})
	}
	w.sent[s.Name] = now
	return w.send(ctx, catalog.Change{Entry: e})
}

// forget withdraws what was sent before of something that cannot be sent now.
func (w *watch) forget(ctx context.Context, last summary, known bool) bool {
	return !known || last.broken || w.send(ctx, catalog.Change{Entry: &catalog.Entry{ID: last.id}, Deleted: true})
}

func (w *watch) summaryOf(s *imagesnapshot.ImageSnapshot) summary {
	now := summary{id: s.ID, name: s.Name, state: string(s.Status.Phase), created: s.Status.Ready, expires: s.Status.Expires}
	// Nodes detach what is being deleted: the storage may not delete a volume that is attached.
	if s.Status.Identity.UUID == "" || s.Status.VolumeSnapshotID == "" && s.Status.VolumeID == "" || s.Status.Phase == imagesnapshot.PhaseDeleting {
		now.images = strings.Join(s.Spec.Images, "\n")
		return now
	}
	now.identity, now.source = s.Status.Identity, catalog.Source{Driver: cmp.Or(s.Status.Driver, w.LegacyDriver), VolumeSnapshotID: s.Status.VolumeSnapshotID}
	if now.source.VolumeSnapshotID == "" {
		now.source.VolumeID = s.Status.VolumeID
	}
	// Those who choose look at the time of expiry themselves, as nothing changes when it comes.
	if s.Usable(time.Time{}, w.OldDuringUpdate) {
		now.state = catalog.StateAvailable
	}
	return now
}
