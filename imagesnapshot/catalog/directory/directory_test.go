package directory_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/catalogtest"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/layerdisk/layerdisktest"
)

const often = 2 * time.Millisecond

func TestCatalog(t *testing.T) {
	catalogtest.Run(t, func(t *testing.T) catalogtest.Catalog {
		d, err := directory.Open(filepath.Join(t.TempDir(), "not", "there", "yet"), often)
		require.NoError(t, err)
		return d
	})
}

func TestRelativePathIsRefused(t *testing.T) {
	_, err := directory.Open("catalog", 0)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

func entry(t *testing.T, id string) catalog.Entry {
	return catalogtest.Entry(t, id, layerdisktest.Image{Reference: "docker.io/library/nginx:1", Layers: []string{"base", "nginx"}})
}

func encode(t *testing.T, e catalog.Entry) []byte {
	data, err := catalog.Encode(e)
	require.NoError(t, err)
	return data
}

// What is no entry is reported and left out, what is beside it is not, and it comes in when it is whole.
func TestBrokenEntries(t *testing.T) {
	dir := t.TempDir()
	d, err := directory.Open(dir, often)
	require.NoError(t, err)
	good := entry(t, "good")
	require.NoError(t, d.Publish(t.Context(), good))
	late := encode(t, entry(t, "late"))
	for name, data := range map[string][]byte{
		"late.json":      late[:len(late)/2],
		"empty.json":     nil,
		"garbage.json":   []byte("\x00\xff"),
		"othername.json": encode(t, entry(t, "name")),
		"format.json":    []byte(`{"format":99}`),
		"notes.txt":      []byte("no entry"),
		".good-123":      []byte("left by a crash"),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe.json"), 0o600))
	require.NoError(t, os.Symlink("good.json", filepath.Join(dir, "link.json")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "dir.json"), 0o700))

	changes, err := d.Watch(t.Context())
	require.NoError(t, err)
	entries, problems := catalogtest.Until(t, changes)
	require.Equal(t, map[string]catalog.Entry{"good": good}, entries)
	require.Len(t, problems, 8)
	for _, p := range problems {
		require.ErrorContains(t, p, dir)
	}

	require.NoError(t, os.WriteFile(filepath.Join(dir, "late.json"), late, 0o600))
	c := catalogtest.Next(t, changes)
	for c.Problem != nil { // seen between truncation and the last byte
		c = catalogtest.Next(t, changes)
	}
	require.NotNil(t, c.Entry)
	require.Equal(t, "late", c.Entry.ID)
}

// An entry that is damaged is gone until it is whole again.
func TestDamagedEntryIsWithdrawn(t *testing.T) {
	dir := t.TempDir()
	d, err := directory.Open(dir, often)
	require.NoError(t, err)
	e := entry(t, "a")
	require.NoError(t, d.Publish(t.Context(), e))
	changes, err := d.Watch(t.Context())
	require.NoError(t, err)
	catalogtest.Until(t, changes)
	file := filepath.Join(dir, "a.json")
	data := encode(t, e)
	i := len(data) * 2 / 3
	data[i] ^= 1 // within the index
	temp := filepath.Join(dir, "temp")
	require.NoError(t, os.WriteFile(temp, data, 0o600))
	require.NoError(t, os.Rename(temp, file))
	c := catalogtest.Next(t, changes)
	require.True(t, c.Deleted)
	require.Equal(t, "a", c.Entry.ID)
	require.Error(t, catalogtest.Next(t, changes).Problem)
	require.NoError(t, d.Publish(t.Context(), e))
	require.Equal(t, catalog.Change{Entry: &e}, catalogtest.Next(t, changes))
}

// A publication that cannot be written leaves nothing.
func TestPublishLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	d, err := directory.Open(dir, often)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "a.json", "in the way"), 0o700))
	require.Error(t, d.Publish(t.Context(), entry(t, "a")))
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 1)
}

// A directory that cannot be read says so once, and what was known stays.
func TestUnreadableDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	d, err := directory.Open(dir, often)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := d.Watch(ctx)
	require.NoError(t, err)
	entries, problems := catalogtest.Until(t, changes)
	require.Empty(t, entries)
	require.Len(t, problems, 1)
	require.NoError(t, os.Remove(dir))
	require.NoError(t, d.Publish(t.Context(), entry(t, "a")))
	require.Equal(t, "a", catalogtest.Next(t, changes).Entry.ID)
}

// Who asks for a look has every watch look at once, and returns when what was found has been received.
func TestLook(t *testing.T) {
	d, err := directory.Open(t.TempDir(), time.Hour)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, d.Look(ctx), "nobody watches")
	var watches []<-chan catalog.Change
	for range 2 {
		changes, err := d.Watch(ctx)
		require.NoError(t, err)
		catalogtest.Until(t, changes)
		watches = append(watches, changes)
	}
	look := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() { done <- d.Look(ctx) }()
		return done
	}
	receive := func(changes <-chan catalog.Change, deleted bool) {
		c := catalogtest.Next(t, changes)
		require.Equal(t, "a", c.Entry.ID)
		require.Equal(t, deleted, c.Deleted)
		require.Equal(t, catalog.Change{Looked: true}, catalogtest.Next(t, changes))
	}
	require.NoError(t, d.Publish(ctx, entry(t, "a")))
	done := look(ctx)
	for deleted := range 2 {
		first := make(chan struct{})
		go func() {
			defer close(first)
			receive(watches[0], deleted == 1)
		}()
		receive(watches[1], deleted == 1)
		<-first
		require.NoError(t, <-done)
		if deleted == 0 {
			require.NoError(t, d.Withdraw(ctx, "a"))
			done = look(ctx)
		}
	}
	bounded, end := context.WithCancel(ctx)
	done = look(bounded) // nobody receives
	end()
	require.ErrorIs(t, <-done, context.Canceled)
	cancel()
	require.NoError(t, <-look(t.Context()), "watches that have ended do not look")
}
