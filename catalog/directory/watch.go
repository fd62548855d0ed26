package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"time"

	"github.com/containerd/log"
	"github.com/fsnotify/fsnotify"

	"berth.dev/berth/catalog"
)

const (
	// settle is how long a directory has to be quiet before it is read: a copy of a large index is many events.
	settle = 100 * time.Millisecond
	// settleMost bounds that where it is never quiet.
	settleMost = 2 * time.Second
	// again is when to look without having been told to: shares tell nobody what other machines write.
	again = time.Minute
)

// Watch is of catalog.Lister. Files that are skipped are logged once, and again when they change.
func (c *Catalog) Watch(ctx context.Context) (<-chan catalog.Change, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch catalog: %w", err)
	}
	// The directory above tells when the directory itself comes or is replaced.
	if err := w.Add(filepath.Dir(filepath.Clean(c.dir))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("watch catalog: %w", err), w.Close())
	}
	out := make(chan catalog.Change)
	v := &view{Catalog: c, notify: w, out: out, entries: make(map[string]catalog.Entry), problems: make(map[string]string)}
	go func() {
		defer close(out)
		defer w.Close() //nolint:errcheck // nothing depends on it
		v.run(ctx)
	}()
	return out, nil
}

// view is what one receiver of Watch has been told.
type view struct {
	*Catalog
	notify   *fsnotify.Watcher
	out      chan<- catalog.Change
	entries  map[string]catalog.Entry
	problems map[string]string
}

func (v *view) run(ctx context.Context) {
	for {
		// Adding it again is how a directory is found that was not there or is another one now.
		if err := v.notify.Add(v.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.G(ctx).WithError(err).WithField("catalog", v.dir).Debug("catalog is looked at from time to time only")
		}
		if !v.look(ctx) || !v.wait(ctx) {
			return
		}
	}
}

// wait returns when there may be something new, false when ctx has ended.
func (v *view) wait(ctx context.Context) bool {
	timer := time.NewTimer(again)
	defer timer.Stop()
	var latest <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case e := <-v.notify.Events:
			if filepath.Dir(e.Name) != filepath.Clean(v.dir) && filepath.Clean(e.Name) != filepath.Clean(v.dir) {
				continue
			}
			if latest == nil {
				latest = time.After(settleMost)
			}
			timer.Reset(settle)
		case <-v.notify.Errors: // events were lost
			return true
		case <-latest:
			return true
		case <-timer.C:
			return true
		}
	}
}

// look sends what has changed since the last look, false when ctx has ended.
func (v *view) look(ctx context.Context) bool {
	entries, problems, err := v.Read(ctx)
	if err != nil {
		if ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("catalog", v.dir).Warn("catalog cannot be read; what was known of it stays")
		}
		return ctx.Err() == nil
	}
	v.report(ctx, problems)
	now := make(map[string]bool, len(entries))
	for _, e := range entries {
		now[e.Name] = true
		before, known := v.entries[e.Name]
		if known && reflect.DeepEqual(before, e) {
			continue
		}
		if known && before.ID != e.ID && !v.send(ctx, removal(before)) {
			return false
		}
		if !v.send(ctx, catalog.Change{Entry: e}) {
			return false
		}
		v.entries[e.Name] = e
	}
	for name, e := range v.entries {
		if now[name] {
			continue
		}
		if !v.send(ctx, removal(e)) {
			return false
		}
		delete(v.entries, name)
	}
	return true
}

func removal(e catalog.Entry) catalog.Change {
	return catalog.Change{Entry: catalog.Entry{Name: e.Name, ID: e.ID}, Removed: true}
}

func (v *view) send(ctx context.Context, c catalog.Change) bool {
	select {
	case v.out <- c:
		return true
	case <-ctx.Done():
		return false
	}
}

// report logs the problems that are new.
func (v *view) report(ctx context.Context, problems []Problem) {
	now := make(map[string]string, len(problems))
	for _, p := range problems {
		now[p.File] = p.Err.Error()
		if v.problems[p.File] != now[p.File] {
			log.G(ctx).WithError(p.Err).WithFields(log.Fields{"catalog": v.dir, "file": p.File}).Warn("catalog entry is skipped")
		}
	}
	v.problems = now
}
