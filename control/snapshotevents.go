package control

import (
	"context"
	"slices"
	"time"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// SnapshotEvent is an event and whose it is.
type SnapshotEvent struct {
	Name, ID string
	imagesnapshot.Event
}

// Events gives what happened, by the last time, and of many the newest MaxListedEvents.
func (s *ImageSnapshots) Events(ctx context.Context, f SnapshotFilter) ([]SnapshotEvent, error) {
	list, err := s.all(ctx, f)
	if err != nil {
		return nil, err
	}
	var events []SnapshotEvent
	for _, o := range list {
		for _, e := range o.Status.Events {
			events = append(events, SnapshotEvent{o.Name, o.ID, e})
		}
	}
	slices.SortStableFunc(events, func(a, b SnapshotEvent) int { return a.Last.Compare(b.Last) })
	return events[max(0, len(events)-MaxListedEvents):], nil
}

// Watch sends every image snapshot that the filter lets through, then each change, until ctx ends, send fails or the store closes. One
// that is named must exist, else it is errdefs.ErrNotFound, and its deletion ends the watch without an error.
func (s *ImageSnapshots) Watch(ctx context.Context, f SnapshotFilter, send func(store.Change) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The watch begins before the look, so that no deletion between the two is missed.
	changes, err := s.reader.Watch(ctx)
	if err != nil {
		return err
	}
	var one *imagesnapshot.ImageSnapshot
	if f.NameOrID != "" {
		if one, err = s.Get(ctx, f.NameOrID); err != nil {
			return err
		}
	}
	for c := range changes {
		if one != nil && c.Object.Name != one.Name {
			continue
		}
		if one != nil && c.Object.ID != one.ID {
			// Another one has the name: the deletion was left out.
			return send(store.Change{Object: one, Deleted: true})
		}
		if one != nil {
			one = c.Object
		}
		if f.store().Match(c.Object) {
			if err := send(c); err != nil {
				return err
			}
		}
		if one != nil && c.Deleted {
			return nil
		}
	}
	return ctx.Err()
}

// WatchEvents sends what happened so far, then each event as it happens. It ends as Watch does.
func (s *ImageSnapshots) WatchEvents(ctx context.Context, f SnapshotFilter, send func(SnapshotEvent) error) error {
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
			if err := send(SnapshotEvent{c.Object.Name, c.Object.ID, e}); err != nil {
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
