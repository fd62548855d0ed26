package imagesnapshotservice

import (
	"context"
	"slices"
	"time"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// Event is an event and the image snapshot that it happened to.
type Event struct {
	Name, ID string
	imagesnapshot.Event
}

// Events lists what happened, ordered by the last time it did: the newest MaxListedEvents.
func (s *Service) Events(ctx context.Context, f Filter) ([]Event, error) {
	list, err := s.all(ctx, f)
	if err != nil {
		return nil, err
	}
	var events []Event
	for _, o := range list {
		for _, e := range o.Status.Events {
			events = append(events, Event{o.Name, o.ID, e})
		}
	}
	slices.SortStableFunc(events, func(a, b Event) int { return a.Last.Compare(b.Last) })
	return events[max(0, len(events)-MaxListedEvents):], nil
}

// Watch sends every image snapshot that the filter lets through, then each change, until ctx ends, send fails or Close
// is called. One that is named must exist, else it is errdefs.ErrNotFound, and its deletion ends the watch without an
// error, as Close does.
func (s *Service) Watch(ctx context.Context, f Filter, send func(store.Change) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The watch begins before the look, so that no deletion between the two is missed.
	changes, err := s.reader.Watch(ctx)
	if err != nil {
		return err
	}
	w := watch{filter: f.store(), send: send}
	if f.NameOrID != "" {
		if w.one, err = s.Get(ctx, f.NameOrID); err != nil {
			return err
		}
	}
	for {
		select {
		case c, ok := <-changes:
			if !ok {
				return ctx.Err()
			}
			if last, err := w.take(c); last || err != nil {
				return err
			}
		case <-s.closed:
			return nil
		}
	}
}

type watch struct {
	filter store.Filter
	send   func(store.Change) error
	// one, if not nil, is the only one that is watched, as it was last.
	one *imagesnapshot.ImageSnapshot
}

// take a change; last says that nothing can follow.
func (w *watch) take(c store.Change) (last bool, err error) {
	switch {
	case w.one != nil && c.Object.Name != w.one.Name:
		return false, nil
	case w.one != nil && c.Object.ID != w.one.ID:
		// Another one has the name: the deletion was left out.
		return true, w.send(store.Change{Object: w.one, Deleted: true})
	case w.one != nil:
		w.one = c.Object
	}
	if w.filter.Match(c.Object) {
		err = w.send(c)
	}
	return w.one != nil && c.Deleted, err
}

// WatchEvents sends what happened so far, then each event as it happens. It ends as Watch does.
func (s *Service) WatchEvents(ctx context.Context, f Filter, send func(Event) error) error {
	seen := make(map[string]sentEvents)
	return s.Watch(ctx, f, func(c store.Change) error {
		have := seen[c.Object.ID]
		now := make(sentEvents, len(c.Object.Status.Events))
		for _, e := range c.Object.Status.Events {
			key := sentEvent{e.Type, e.Reason, e.Message, e.First}
			now[key] = e.Count
			if e.Count == have[key] {
				continue
			}
			if err := send(Event{c.Object.Name, c.Object.ID, e}); err != nil {
				return err
			}
		}
		// What the object has dropped is dropped here too, so that this stays as small.
		seen[c.Object.ID] = now
		if c.Deleted {
			delete(seen, c.Object.ID)
		}
		return nil
	})
}

// sentEvents of one image snapshot, each with the count at which it was sent.
type sentEvents map[sentEvent]int64

type sentEvent struct {
	kind    imagesnapshot.EventType
	reason  imagesnapshot.Reason
	message string
	first   time.Time
}
