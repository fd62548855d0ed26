// Package directory keeps a catalog as a directory with one file per image snapshot, <ID>.json. The directory may lie
// on NFS or in a node's image, and files may be brought by any means: what is incomplete or damaged is reported and
// left out until it changes.
//
// The directory is looked at again and again rather than watched by the kernel, which learns nothing of what other
// machines do to a network file system.
//
// Whoever may write to the directory may have nodes attach any disk; berth's own proof that a disk is the one of the
// entry's index still stands before anything is mounted.
package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth.dev/berth/imagesnapshot/catalog"
)

const (
	suffix = ".json"
	// tempPrefix begins names that no entry can have, because no ID begins with a dot.
	tempPrefix = "."
	// DefaultInterval between two looks.
	DefaultInterval = 2 * time.Second
	// maxEntries bounds what one directory makes a node remember.
	maxEntries = 100_000
)

// Directory is a catalog. It is safe for concurrent use, by several processes too.
type Directory struct {
	path     string
	interval time.Duration

	mu      sync.Mutex // guards watches
	watches map[*watch]bool
}

var (
	_ catalog.Lister    = (*Directory)(nil)
	_ catalog.Looker    = (*Directory)(nil)
	_ catalog.Publisher = (*Directory)(nil)
)

// Open uses a directory, which may not be there yet. interval is the time between two looks, 0 for DefaultInterval. A
// path that is not absolute is errdefs.ErrInvalidArgument.
func Open(path string, interval time.Duration) (*Directory, error) {
	if !filepath.IsAbs(path) || interval < 0 {
		return nil, fmt.Errorf("open catalog %q, looked at every %s: want an absolute path and no negative time: %w", path, interval, errdefs.ErrInvalidArgument)
	}
	if interval == 0 {
		interval = DefaultInterval
	}
	return &Directory{path: path, interval: interval, watches: map[*watch]bool{}}, nil
}

// Publish writes the entry's file: under another name first, and synced, so that a crash leaves the old one or the new
// one.
func (d *Directory) Publish(ctx context.Context, e catalog.Entry) error {
	data, err := catalog.Encode(e)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = replace(filepath.Join(d.path, e.ID+suffix), data)
	}
	if err != nil {
		return fmt.Errorf("publish in catalog %s: %w", d.path, err)
	}
	return nil
}

// replace the whole file, and make its directory if it is missing.
func replace(path string, data []byte) error {
	dir, name := filepath.Split(path)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // nothing in a catalog is secret
		return err
	}
	f, err := os.CreateTemp(dir, tempPrefix+name+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// syncDir makes names in a directory last.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Withdraw deletes the entry's file, and its access lists.
func (d *Directory) Withdraw(ctx context.Context, id string) error {
	err := catalog.CheckID(id)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = os.Remove(filepath.Join(d.path, id+suffix))
		if err == nil {
			err = syncDir(d.path)
		}
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = d.removeLists(id, nil)
	}
	if err != nil {
		return fmt.Errorf("withdraw from catalog %s: %w", d.path, err)
	}
	return nil
}

// Watch looks at the directory now and then. A directory that is not there has no entries; one that cannot be read is a
// Problem, and the entries known of it stay.
func (d *Directory) Watch(ctx context.Context) (<-chan catalog.Change, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("watch catalog %s: %w", d.path, err)
	}
	w := &watch{
		path: d.path, out: make(chan catalog.Change), known: make(map[string]seen),
		asked: make(chan chan<- struct{}), ended: make(chan struct{}),
	}
	d.mu.Lock()
	d.watches[w] = true
	d.mu.Unlock()
	go func() {
		w.run(ctx, d.interval)
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watches, w)
	}()
	return w.out, nil
}

// Look implements catalog.Looker.
func (d *Directory) Look(ctx context.Context) error {
	d.mu.Lock()
	watches := slices.Collect(maps.Keys(d.watches))
	d.mu.Unlock()
	for _, w := range watches {
		if err := w.askToLook(ctx); err != nil {
			return fmt.Errorf("look at catalog %s: %w", d.path, err)
		}
	}
	return nil
}

// seen is a file as it was looked at.
type seen struct {
	stamp stamp
	// entry says that the file was a good entry.
	entry bool
}

// stamp changes whenever the content of a file does. The time of change (ctime) cannot be set by those who copy files.
type stamp struct {
	inode  uint64
	size   int64
	mtime  unix.Timespec
	change unix.Timespec
}

type watch struct {
	path  string
	out   chan catalog.Change
	known map[string]seen // by file name
	// trouble is the last one about the directory itself, to say it once.
	trouble string
	// asked are those who want it to look now; each channel is closed when it has.
	asked chan chan<- struct{}
	// ended is closed at the end.
	ended chan struct{}
}

// askToLook returns when the watch has looked, or has ended.
func (w *watch) askToLook(ctx context.Context) error {
	looked := make(chan struct{})
	select {
	case w.asked <- looked:
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-looked:
	case <-w.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (w *watch) run(ctx context.Context, interval time.Duration) {
	defer close(w.out)
	defer close(w.ended)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	if !w.look(ctx) || !w.send(ctx, catalog.Change{Synced: true}) {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if !w.look(ctx) {
				return
			}
		case looked := <-w.asked:
			if !w.look(ctx) || !w.send(ctx, catalog.Change{Looked: true}) {
				return
			}
			close(looked)
		}
	}
}

// send returns false at the end.
func (w *watch) send(ctx context.Context, c catalog.Change) bool {
	select {
	case w.out <- c:
		return true
	case <-ctx.Done():
		return false
	}
}

// look sends what changed since the last look. It returns false at the end.
func (w *watch) look(ctx context.Context) bool {
	names, err := w.names()
	if err != nil {
		text := err.Error()
		known := text == w.trouble
		w.trouble = text
		return known || w.send(ctx, catalog.Change{Problem: fmt.Errorf("read catalog: %w", err)})
	}
	w.trouble = ""
	for _, name := range slices.Sorted(maps.Keys(w.known)) {
		if _, there := slices.BinarySearch(names, name); !there && !w.forget(ctx, name) {
			return false
		}
	}
	for _, name := range names {
		if !w.lookAt(ctx, name) {
			return false
		}
	}
	return true
}

func (w *watch) names() ([]string, error) {
	entries, err := os.ReadDir(w.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, suffix) && !strings.HasPrefix(name, tempPrefix) {
			names = append(names, name)
		}
	}
	if len(names) > maxEntries {
		return nil, fmt.Errorf("%s has %d entries, at most %d are allowed: remove those that nobody needs", w.path, len(names), maxEntries)
	}
	return names, nil // os.ReadDir sorts
}

// forget a file that is gone or no entry any more.
func (w *watch) forget(ctx context.Context, name string) bool {
	was := w.known[name].entry
	delete(w.known, name)
	return !was || w.send(ctx, catalog.Change{Entry: &catalog.Entry{ID: strings.TrimSuffix(name, suffix)}, Deleted: true})
}

func (w *watch) lookAt(ctx context.Context, name string) bool {
	path := filepath.Join(w.path, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return true // gone since the listing; the next look says so
	}
	now := stamp{st.Ino, st.Size, st.Mtim, st.Ctim}
	if old, ok := w.known[name]; ok && old.stamp == now {
		return true
	}
	e, err := read(path, strings.TrimSuffix(name, suffix))
	if err == nil {
		w.known[name] = seen{stamp: now, entry: true}
		return w.send(ctx, catalog.Change{Entry: e})
	}
	if !w.forget(ctx, name) {
		return false
	}
	w.known[name] = seen{stamp: now}
	return w.send(ctx, catalog.Change{Problem: fmt.Errorf("catalog entry %s is left out: %w", path, err)})
}

// read reads one file, which need not be what it claims to be.
func read(path, id string) (*catalog.Entry, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("it is not a regular file: %w", errdefs.ErrInvalidArgument)
	}
	data, err := io.ReadAll(io.LimitReader(f, catalog.MaxEncodedBytes+1))
	if err != nil {
		return nil, err
	}
	e, err := catalog.Decode(data)
	if err != nil {
		return nil, err
	}
	if e.ID != id {
		return nil, fmt.Errorf("its ID is %q, so its name has to be %s: %w", e.ID, e.ID+suffix, errdefs.ErrInvalidArgument)
	}
	return &e, nil
}
