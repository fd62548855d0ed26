package fromstore_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/catalog"
	"berth.dev/berth/catalog/fromstore"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

func TestCatalog(t *testing.T) {
	s, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	c := fromstore.New(s, s, s, fromstore.Options{Driver: "loop"})
	old := fromstore.New(s, s, s, fromstore.Options{Driver: "loop", ServeOldDuringUpdate: true})
	changes, err := c.Watch(t.Context())
	require.NoError(t, err)
	next := func() catalog.Change {
		t.Helper()
		select {
		case c := <-changes:
			return c
		case <-time.After(10 * time.Second):
			require.FailNow(t, "no change")
			return catalog.Change{}
		}
	}

	created := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	obj, err := s.Create(t.Context(), &imagesnapshot.ImageSnapshot{
		Metadata: imagesnapshot.Metadata{Name: "one", ID: "1", Owner: "tenant", Created: created},
		Status:   imagesnapshot.Status{Phase: imagesnapshot.PhaseCreating},
	})
	require.NoError(t, err)
	first := next()
	require.Equal(t, catalog.Entry{Name: "one", ID: "1", Owner: "tenant", State: "Creating", Created: created, Source: catalog.Source{Driver: "loop"}}, first.Entry)

	// Progress is no news.
	obj.Status.Progress = 50
	obj, err = s.Update(t.Context(), obj)
	require.NoError(t, err)

	ix := layerdisktest.Index("erofs", layerdisktest.Image{Reference: "docker.io/library/a:1", Layers: []string{"a"}})
	encoded, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	d := digest.SHA256.FromBytes(encoded)
	require.NoError(t, s.PutIndex(t.Context(), d, encoded))
	obj.Status.Phase = imagesnapshot.PhaseAvailable
	obj.Status.Content = imagesnapshot.Content{
		Identity: layerdisk.Identity{UUID: ix.UUID, IndexDigest: d}, Ready: created.Add(time.Hour), VolumeID: "vol",
	}
	obj, err = s.Update(t.Context(), obj)
	require.NoError(t, err)
	flash := next().Entry
	require.Equal(t, "vol", flash.Source.VolumeID)
	require.NoError(t, flash.Check())

	obj.Status.VolumeID, obj.Status.SnapshotID = "", "s1"
	obj.Status.Snapshots = []imagesnapshot.VolumeSnapshot{{ID: "s1", SizeBytes: 7}, {ID: "s2", SizeBytes: 7}}
	obj, err = s.Update(t.Context(), obj)
	require.NoError(t, err)
	e := next().Entry
	require.Equal(t, catalog.StateAvailable, e.State)
	require.Equal(t, catalog.Source{Driver: "loop", SnapshotIDs: []string{"s1", "s2"}}, e.Source)
	require.Equal(t, encoded, e.Index)
	require.Equal(t, created.Add(time.Hour), e.Created)
	require.EqualValues(t, 7, e.SizeBytes)
	require.NoError(t, e.Check())
	list, err := c.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []catalog.Entry{e}, list)

	obj.Status.Phase = imagesnapshot.PhaseUpdating
	obj, err = s.Update(t.Context(), obj)
	require.NoError(t, err)
	require.Equal(t, "Updating", next().Entry.State)
	list, err = old.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, catalog.StateAvailable, list[0].State, "serveOldDuringUpdate")

	require.NoError(t, s.Delete(t.Context(), "one", obj.ResourceVersion))
	require.Equal(t, catalog.Change{Entry: catalog.Entry{Name: "one", ID: "1"}, Removed: true}, next())
}
