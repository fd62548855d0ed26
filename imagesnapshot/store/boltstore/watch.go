package boltstore

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot/store"
)

// watcher holds what one receiver has not taken yet: of each object the last change.
type watcher struct {
	// wake has room for one: a second wake-up before the first was seen means the same.
	wake   chan struct{}
	done   chan struct{}
	once   sync.Once
	mu     sync.Mutex
	names  []string
	latest map[string]store.Change
}

// tell queues a change. The object is the store's, which never changes it in place.
func (w *watcher) tell(c store.Change) {
	w.mu.Lock()
	if _, waiting := w.latest[c.Object.Name]; !waiting {
		w.names = append(w.names, c.Object.Name)
	}
	w.latest[c.Object.Name] = c
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) next() (store.Change, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.names) == 0 {
		return store.Change{}, false
	}
	name := w.names[0]
	w.names = w.names[1:]
	c := w.latest[name]
	delete(w.latest, name)
	return store.Change{Object: c.Object.Clone(), Deleted: c.Deleted}, true
}

func (w *watcher) stop() { w.once.Do(func() { close(w.done) }) }

// Watch implements store.Watcher.
func (s *Store) Watch(ctx context.Context) (<-chan store.Change, error) {
	w := &watcher{wake: make(chan struct{}, 1), done: make(chan struct{}), latest: make(map[string]store.Change)}
	if !s.objects.follow(w) {
		return nil, fmt.Errorf("watch image snapshots: the store is closed: %w", errdefs.ErrUnavailable)
	}
	out := make(chan store.Change)
	go func() {
		defer close(out)
		defer s.objects.unfollow(w)
		w.send(ctx, out)
	}()
	return out, nil
}

// follow sends w every object that exists and each change from now on. It returns false if the store is closed.
func (o *objects) follow(w *watcher) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	for _, obj := range o.byName {
		w.tell(store.Change{Object: obj})
	}
	o.watchers[w] = struct{}{}
	return true
}

func (o *objects) unfollow(w *watcher) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.watchers, w)
}

// send sends what is queued for w until ctx ends or the store is closed.
func (w *watcher) send(ctx context.Context, out chan<- store.Change) {
	for {
		c, ok := w.next()
		if !ok {
			select {
			case <-w.wake:
				continue
			case <-w.done:
				return
			case <-ctx.Done():
				return
			}
		}
		select {
		case out <- c:
		case <-w.done:
			return
		case <-ctx.Done():
			return
		}
	}
}
