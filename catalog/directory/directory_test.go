package directory_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/catalog"
	"berth.dev/berth/catalog/directory"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

func entry(t testing.TB, name string) catalog.Entry {
	t.Helper()
	ix := layerdisktest.Index("erofs", layerdisktest.Image{Reference: "docker.io/library/" + name + ":1", Layers: []string{"base", name}})
	encoded, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	return catalog.Entry{
		Name: name, ID: "id-" + name, State: catalog.StateAvailable, Created: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Source: catalog.Source{Driver: "loop", SnapshotIDs: []string{"snap-" + name}}, Index: encoded,
		Identity: layerdisk.Identity{UUID: ix.UUID, IndexDigest: digest.SHA256.FromBytes(encoded)},
	}
}

func TestPublishAndList(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "later")
	c := directory.New(dir)
	none, err := c.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, none)
	a, b := entry(t, "a"), entry(t, "b")
	require.NoError(t, c.Publish(t.Context(), b))
	require.NoError(t, c.Publish(t.Context(), a))
	creating := catalog.Entry{Name: "c", ID: "id-c", State: "Creating"}
	require.NoError(t, c.Publish(t.Context(), creating))
	got, err := directory.New(dir).List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []catalog.Entry{a, b, creating}, got)

	a.State = "Unavailable"
	require.NoError(t, c.Publish(t.Context(), a))
	require.NoError(t, c.Withdraw(t.Context(), "b"))
	require.NoError(t, c.Withdraw(t.Context(), "b"))
	got, err = c.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []catalog.Entry{a, creating}, got)

	// An index that nothing refers to goes when nobody can be about to refer to it.
	index := filepath.Join(dir, "sha256-"+b.Identity.IndexDigest.Encoded()+".index")
	require.FileExists(t, index)
	require.NoError(t, os.Chtimes(index, time.Time{}, time.Now().Add(-2*time.Hour)))
	foreign := filepath.Join(dir, "notes.index")
	require.NoError(t, os.WriteFile(foreign, nil, 0o644))
	require.NoError(t, c.Withdraw(t.Context(), "c"))
	require.NoFileExists(t, index)
	require.FileExists(t, foreign)
}

func TestRelativePath(t *testing.T) {
	dir := t.TempDir()
	c := directory.New(dir)
	e := entry(t, "a")
	e.Source = catalog.Source{Path: "disks/a.img"}
	require.NoError(t, c.Publish(t.Context(), e))
	got, err := c.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "disks/a.img"), got[0].Source.Path)
}

func TestPublishRefuses(t *testing.T) {
	c := directory.New(t.TempDir())
	for name, spoil := range map[string]func(*catalog.Entry){
		"name":           func(e *catalog.Entry) { e.Name = "../a" },
		"no ID":          func(e *catalog.Entry) { e.ID = "" },
		"no state":       func(e *catalog.Entry) { e.State = "" },
		"no source":      func(e *catalog.Entry) { e.Source = catalog.Source{} },
		"two sources":    func(e *catalog.Entry) { e.Source.Path = "x" },
		"no index":       func(e *catalog.Entry) { e.Index = nil },
		"another index":  func(e *catalog.Entry) { e.Index = append([]byte(nil), e.Index[1:]...) },
		"another UUID":   func(e *catalog.Entry) { e.Identity.UUID = "7d0f5a3e-2c64-4b1b-9a57-c6f2b1c0d9e4" },
		"enormous entry": func(e *catalog.Entry) { e.Owner = strings.Repeat("x", 2<<20) },
	} {
		e := entry(t, "a")
		spoil(&e)
		require.True(t, errdefs.IsInvalidArgument(c.Publish(t.Context(), e)), name)
	}
	require.True(t, errdefs.IsInvalidArgument(c.Withdraw(t.Context(), "../a")))
	got, err := c.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, got)
}

// TestBadEntries: each kind of damage is reported and skipped, and the others are there.
func TestBadEntries(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string, raw, index []byte){
		"half written": func(t *testing.T, dir string, raw, _ []byte) { write(t, dir, "b.json", raw[:len(raw)/2]) },
		"empty":        func(t *testing.T, dir string, _, _ []byte) { write(t, dir, "b.json", nil) },
		"garbage behind": func(t *testing.T, dir string, raw, _ []byte) {
			write(t, dir, "b.json", append(append([]byte(nil), raw...), raw...))
		},
		"another name": func(t *testing.T, dir string, raw, _ []byte) {
			write(t, dir, "b.json", bytes.ReplaceAll(raw, []byte(`"b"`), []byte(`"c"`)))
		},
		"half an index": func(t *testing.T, dir string, _, index []byte) {
			write(t, dir, indexName(t, dir), index[:len(index)/2])
		},
		"no index": func(t *testing.T, dir string, _, _ []byte) {
			require.NoError(t, os.Remove(filepath.Join(dir, indexName(t, dir))))
		},
		"path digest": func(t *testing.T, dir string, raw, _ []byte) {
			write(t, dir, "b.json", bytes.ReplaceAll(raw, []byte("sha256:"), []byte("../../sha256:")))
		},
		"same ID": func(t *testing.T, dir string, raw, _ []byte) {
			write(t, dir, "b.json", bytes.ReplaceAll(raw, []byte("id-b"), []byte("id-a")))
		},
		"large": func(t *testing.T, dir string, _, _ []byte) {
			require.NoError(t, os.Truncate(filepath.Join(dir, "b.json"), 1<<30))
		},
		"a directory": func(t *testing.T, dir string, _, _ []byte) {
			require.NoError(t, os.Remove(filepath.Join(dir, "b.json")))
			require.NoError(t, os.Mkdir(filepath.Join(dir, "b.json"), 0o755))
		},
		"two ways": func(t *testing.T, dir string, raw, _ []byte) {
			write(t, dir, "b.json", bytes.ReplaceAll(raw, []byte(`"driver"`), []byte(`"path": "x", "driver"`)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := directory.New(dir)
			a, b := entry(t, "a"), entry(t, "b")
			require.NoError(t, c.Publish(t.Context(), a))
			require.NoError(t, c.Publish(t.Context(), b))
			raw, err := os.ReadFile(filepath.Join(dir, "b.json"))
			require.NoError(t, err)
			spoil(t, dir, raw, b.Index)
			got, problems, err := c.Read(t.Context())
			require.NoError(t, err)
			require.Equal(t, []catalog.Entry{a}, got)
			require.Len(t, problems, 1)
			require.Equal(t, "b.json", problems[0].File)
			require.Error(t, problems[0])
		})
	}
}

func indexName(t *testing.T, _ string) string {
	return "sha256-" + entry(t, "b").Identity.IndexDigest.Encoded() + ".index"
}

func write(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
}

func receive(t *testing.T, changes <-chan catalog.Change) catalog.Change {
	t.Helper()
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	select {
	case c, ok := <-changes:
		require.True(t, ok)
		return c
	case <-timer.C:
		require.FailNow(t, "no change")
		return catalog.Change{}
	}
}

func TestWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "catalog")
	c := directory.New(dir)
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := c.Watch(ctx)
	require.NoError(t, err)
	a := entry(t, "a")
	require.NoError(t, c.Publish(t.Context(), a), "into a directory that was not there")
	require.Equal(t, catalog.Change{Entry: a}, receive(t, changes))

	// A file that is half written, and then whole.
	b := entry(t, "b")
	raw, err := json.Marshal(b)
	require.NoError(t, err)
	write(t, dir, indexName(t, dir), b.Index)
	write(t, dir, "b.json", raw[:40])
	a.State = "Unavailable"
	require.NoError(t, c.Publish(t.Context(), a))
	require.Equal(t, catalog.Change{Entry: a}, receive(t, changes))
	write(t, dir, "b.json", raw)
	require.Equal(t, catalog.Change{Entry: b}, receive(t, changes))

	require.NoError(t, c.Withdraw(t.Context(), "a"))
	require.Equal(t, catalog.Change{Entry: catalog.Entry{Name: "a", ID: "id-a"}, Removed: true}, receive(t, changes))
	b.ID = "another"
	require.NoError(t, c.Publish(t.Context(), b))
	require.True(t, receive(t, changes).Removed)
	require.Equal(t, catalog.Change{Entry: b}, receive(t, changes))

	// The directory is replaced as a whole.
	require.NoError(t, os.Rename(dir, dir+".old"))
	require.True(t, receive(t, changes).Removed)
	require.NoError(t, os.Rename(dir+".old", dir))
	require.Equal(t, catalog.Change{Entry: b}, receive(t, changes))
	cancel()
	for range changes { //nolint:revive // until it is closed
	}
}

// TestReadersSeeWholeEntries while others write.
func TestReadersSeeWholeEntries(t *testing.T) {
	c := directory.New(t.TempDir())
	var group sync.WaitGroup
	stop := make(chan struct{})
	for i := range 2 {
		group.Go(func() {
			for n := 0; n < 30; n++ {
				e := entry(t, fmt.Sprintf("n%d", i))
				e.SizeBytes = int64(n)
				if err := c.Publish(t.Context(), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { group.Wait(); close(stop) }()
	for done := false; !done; {
		select {
		case <-stop:
			done = true
		default:
		}
		_, problems, err := c.Read(t.Context())
		require.NoError(t, err)
		require.Empty(t, problems)
	}
}

func FuzzRead(f *testing.F) {
	raw, err := json.Marshal(entry(f, "b"))
	require.NoError(f, err)
	f.Add(raw)
	f.Add([]byte(`{"name":"b","id":"1","state":"Creating"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		b := entry(t, "b")
		write(t, dir, "sha256-"+b.Identity.IndexDigest.Encoded()+".index", b.Index)
		write(t, dir, "b.json", raw)
		entries, problems, err := directory.New(dir).Read(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, len(entries)+len(problems))
		for _, e := range entries {
			require.NoError(t, e.Check())
		}
	})
}
