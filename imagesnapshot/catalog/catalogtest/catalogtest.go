// Package catalogtest proves that a catalog keeps to what package catalog says.
package catalogtest

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// soon bounds every wait.
const soon = 20 * time.Second

// Catalog under test.
type Catalog interface {
	catalog.Lister
	catalog.Publisher
}

// Entry of an image snapshot that has the images; its ID is id.
func Entry(t testing.TB, id string, images ...layerdisktest.Image) catalog.Entry {
	t.Helper()
	index, err := layerdisk.Seal(layerdisktest.Index(layerdisk.FileSystemEROFS, images...))
	require.NoError(t, err)
	return catalog.Entry{
		Name: "name-of-" + id, ID: id, State: catalog.StateAvailable, Created: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
		Source: catalog.Source{Driver: "loop", VolumeSnapshotID: "snapshot-of-" + id}, Index: index,
	}
}

// Next message of a watch.
func Next(t testing.TB, changes <-chan catalog.Change) catalog.Change {
	t.Helper()
	select {
	case c, ok := <-changes:
		require.True(t, ok, "the watch has ended")
		return c
	case <-time.After(soon):
		require.FailNow(t, "nothing was sent")
		return catalog.Change{}
	}
}

// Until everything there was is sent: the entries by ID, and the problems.
func Until(t testing.TB, changes <-chan catalog.Change) (map[string]catalog.Entry, []error) {
	t.Helper()
	entries, problems := map[string]catalog.Entry{}, []error(nil)
	for {
		switch c := Next(t, changes); {
		case c.Synced:
			return entries, problems
		case c.Problem != nil:
			problems = append(problems, c.Problem)
		case c.Deleted:
			delete(entries, c.Entry.ID)
		default:
			entries[c.Entry.ID] = *c.Entry
		}
	}
}

// Run runs all checks. open returns an empty catalog.
func Run(t *testing.T, open func(t *testing.T) Catalog) {
	nginx := layerdisktest.Image{Reference: "docker.io/library/nginx:1", Layers: []string{"base", "nginx"}}
	redis := layerdisktest.Image{Reference: "docker.io/library/redis:7", Layers: []string{"base", "redis"}}
	t.Run("what is there comes first", func(t *testing.T) {
		c := open(t)
		a, b := Entry(t, "a", nginx), Entry(t, "b", redis)
		b.Expires, b.State, b.Source = b.Created.Add(time.Hour), "Unavailable", catalog.Source{Driver: "loop", VolumeID: "/srv/b.img"}
		making := catalog.Entry{Name: "making", ID: "m", State: "Creating", Created: a.Created, Images: []string{nginx.Reference}}
		for _, e := range []catalog.Entry{a, b, making} {
			require.NoError(t, c.Publish(t.Context(), e))
		}
		for range 2 { // every watch begins from the start
			changes, err := c.Watch(t.Context())
			require.NoError(t, err)
			entries, problems := Until(t, changes)
			require.Empty(t, problems)
			require.Equal(t, map[string]catalog.Entry{"a": a, "b": b, "m": making}, entries)
		}
	})
	t.Run("changes follow", func(t *testing.T) {
		c := open(t)
		changes, err := c.Watch(t.Context())
		require.NoError(t, err)
		require.True(t, Next(t, changes).Synced)
		e := Entry(t, "a", nginx)
		require.NoError(t, c.Publish(t.Context(), e))
		require.Equal(t, catalog.Change{Entry: &e}, Next(t, changes))
		e = Entry(t, "a", nginx, redis)
		require.NoError(t, c.Publish(t.Context(), e))
		require.Equal(t, catalog.Change{Entry: &e}, Next(t, changes))
		require.NoError(t, c.Withdraw(t.Context(), "a"))
		require.Equal(t, catalog.Change{Entry: &catalog.Entry{ID: "a"}, Deleted: true}, Next(t, changes))
		require.NoError(t, c.Withdraw(t.Context(), "a"), "again")
	})
	t.Run("the end", func(t *testing.T) {
		c := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		changes, err := c.Watch(ctx)
		require.NoError(t, err)
		require.True(t, Next(t, changes).Synced)
		cancel()
		_, open := <-changes
		require.False(t, open)
		require.ErrorIs(t, c.Publish(ctx, Entry(t, "a", nginx)), context.Canceled)
		_, err = c.Watch(ctx)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("what is no entry is refused", func(t *testing.T) { refused(t, open(t), Entry(t, "a", nginx)) })
}

func refused(t *testing.T, c Catalog, good catalog.Entry) {
	for name, change := range map[string]func(*catalog.Entry){
		"no ID":        func(e *catalog.Entry) { e.ID = "" },
		"path as ID":   func(e *catalog.Entry) { e.ID = "../a" },
		"hidden ID":    func(e *catalog.Entry) { e.ID = ".a" },
		"no name":      func(e *catalog.Entry) { e.Name = "" },
		"control":      func(e *catalog.Entry) { e.Name = "a\x1b[2J" },
		"no state":     func(e *catalog.Entry) { e.State = "" },
		"no driver":    func(e *catalog.Entry) { e.Source.Driver = "" },
		"no source":    func(e *catalog.Entry) { e.Source.VolumeSnapshotID = "" },
		"two sources":  func(e *catalog.Entry) { e.Source.VolumeID = "v" },
		"no index":     func(e *catalog.Entry) { e.Index = nil },
		"broken index": func(e *catalog.Entry) { e.Index = e.Index[:len(e.Index)/2] },
	} {
		e := good
		change(&e)
		require.ErrorIs(t, c.Publish(t.Context(), e), errdefs.ErrInvalidArgument, name)
	}
	require.ErrorIs(t, c.Withdraw(t.Context(), "../a"), errdefs.ErrInvalidArgument)
	changes, err := c.Watch(t.Context())
	require.NoError(t, err)
	require.True(t, Next(t, changes).Synced, "nothing is there")
}
