package storelister_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/catalogtest"
	"berth.dev/berth/imagesnapshot/catalog/storelister"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/layerdisk/layerdisktest"
)

const nginx = "docker.io/library/nginx:1"

// world is a store with its catalog.
type world struct {
	*testing.T
	store   *boltstore.Store
	catalog *storelister.Catalog
}

func newWorld(t *testing.T, old bool) *world {
	s, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return &world{t, s, storelister.New(storelister.Config{Store: s, Watcher: s, Indexes: s, LegacyDriver: "loop", OldDuringUpdate: old})}
}

// built image snapshot that is Available, with the entry that it should be.
func (w *world) built(name string, layers ...string) (*imagesnapshot.ImageSnapshot, catalog.Entry) {
	w.Helper()
	e := catalogtest.Entry(w, uuid.NewString(), layerdisktest.Image{Reference: nginx, Layers: layers})
	_, identity, err := e.Parse()
	require.NoError(w, err)
	e.Name = name
	require.NoError(w, w.store.PutIndex(w.Context(), identity.IndexDigest, e.Index))
	s := &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Name: name, ID: e.ID, Generation: 1, Created: e.Created}}
	s.Spec.Images = []string{nginx}
	s.Status.Phase, s.Status.Ready, s.Status.Identity, s.Status.VolumeSnapshotID = imagesnapshot.PhaseAvailable, e.Created, identity, e.Source.VolumeSnapshotID
	s, err = w.store.Create(w.Context(), s)
	require.NoError(w, err)
	return s, e
}

func (w *world) update(s *imagesnapshot.ImageSnapshot, change func(*imagesnapshot.ImageSnapshot)) *imagesnapshot.ImageSnapshot {
	w.Helper()
	change(s)
	s, err := w.store.Update(w.Context(), s)
	require.NoError(w, err)
	return s
}

func (w *world) watch() (<-chan catalog.Change, map[string]catalog.Entry) {
	w.Helper()
	changes, err := w.catalog.Watch(w.Context())
	require.NoError(w, err)
	entries, problems := catalogtest.Until(w, changes)
	require.Empty(w, problems)
	return changes, entries
}

func TestLifeOfAnEntry(t *testing.T) {
	w := newWorld(t, false)
	s, e := w.built("nightly", "base", "nginx")
	pending := &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Name: "pending", ID: uuid.NewString(), Generation: 1}}
	pending.Status.Phase, pending.Spec.Images = imagesnapshot.PhaseCreating, []string{nginx, "docker.io/library/redis:7"}
	_, err := w.store.Create(t.Context(), pending)
	require.NoError(t, err)

	changes, entries := w.watch()
	making := catalog.Entry{Name: "pending", ID: pending.ID, State: "Creating", Images: pending.Spec.Images}
	require.Equal(t, map[string]catalog.Entry{e.ID: e, making.ID: making}, entries, "one without content has no disk (C-3)")

	s = w.update(s, func(s *imagesnapshot.ImageSnapshot) { s.Status.MatchCount++ })
	s = w.update(s, func(s *imagesnapshot.ImageSnapshot) { s.Status.Expires = e.Created.Add(time.Hour) })
	e.Expires = e.Created.Add(time.Hour)
	require.Equal(t, catalog.Change{Entry: &e}, catalogtest.Next(t, changes), "being matched changes nothing")
	s = w.update(s, func(s *imagesnapshot.ImageSnapshot) { s.Status.Phase = imagesnapshot.PhaseUpdating })
	e.State = "Updating"
	require.Equal(t, catalog.Change{Entry: &e}, catalogtest.Next(t, changes))
	s = w.update(s, func(s *imagesnapshot.ImageSnapshot) {
		s.Status.Phase, s.Status.VolumeSnapshotID, s.Status.VolumeID = imagesnapshot.PhaseAvailable, "", "volume"
	})
	e.State, e.Source = catalog.StateAvailable, catalog.Source{Driver: "loop", VolumeID: "volume"}
	require.Equal(t, catalog.Change{Entry: &e}, catalogtest.Next(t, changes))
	s = w.update(s, func(s *imagesnapshot.ImageSnapshot) { s.Status.Phase = imagesnapshot.PhaseDeleting })
	e = catalog.Entry{Name: e.Name, ID: e.ID, State: "Deleting", Created: e.Created, Expires: e.Expires, Images: []string{nginx}}
	require.Equal(t, catalog.Change{Entry: &e}, catalogtest.Next(t, changes), "nodes let go of the volume before it is deleted")
	require.NoError(t, w.store.Delete(t.Context(), s.Name, s.ResourceVersion))
	require.Equal(t, catalog.Change{Entry: &catalog.Entry{ID: e.ID}, Deleted: true}, catalogtest.Next(t, changes))
}

// Requirements 3.2: the old content may serve during an update.
func TestOldContentDuringUpdate(t *testing.T) {
	for _, old := range []bool{false, true} {
		w := newWorld(t, old)
		s, e := w.built("nightly", "base")
		w.update(s, func(s *imagesnapshot.ImageSnapshot) { s.Status.Phase = imagesnapshot.PhaseUpdating })
		_, entries := w.watch()
		require.Equal(t, old, entries[e.ID].State == catalog.StateAvailable)
	}
}

// One that was deleted and created again under its name is another.
func TestSameNameAgain(t *testing.T) {
	w := newWorld(t, false)
	s, first := w.built("nightly", "base")
	changes, _ := w.watch()
	require.NoError(t, w.store.Delete(t.Context(), s.Name, s.ResourceVersion))
	_, second := w.built("nightly", "base")
	c := catalogtest.Next(t, changes)
	require.True(t, c.Deleted)
	require.Equal(t, first.ID, c.Entry.ID)
	require.Equal(t, catalog.Change{Entry: &second}, catalogtest.Next(t, changes))
}

func TestLostIndexIsReported(t *testing.T) {
	w := newWorld(t, false)
	s, e := w.built("nightly", "base")
	changes, _ := w.watch()
	require.NoError(t, w.store.DeleteIndex(t.Context(), s.Status.Identity.IndexDigest))
	s = w.update(s, func(s *imagesnapshot.ImageSnapshot) { s.Status.VolumeSnapshotID = "another" })
	require.True(t, catalogtest.Next(t, changes).Deleted)
	require.ErrorContains(t, catalogtest.Next(t, changes).Problem, "nightly")
	require.NoError(t, w.store.PutIndex(t.Context(), s.Status.Identity.IndexDigest, e.Index))
	w.update(s, func(s *imagesnapshot.ImageSnapshot) { s.Status.MatchCount++ })
	e.Source.VolumeSnapshotID = "another"
	require.Equal(t, catalog.Change{Entry: &e}, catalogtest.Next(t, changes))
}

func TestWatchEndsWithItsContext(t *testing.T) {
	w := newWorld(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := w.catalog.Watch(ctx)
	require.NoError(t, err)
	require.True(t, catalogtest.Next(t, changes).Synced)
	cancel()
	_, open := <-changes
	require.False(t, open)
	_, err = w.catalog.Watch(ctx)
	require.ErrorIs(t, err, context.Canceled)
}
