package imagesnapshot

import (
	"slices"
	"time"
)

// EventType says whether an event is news or trouble.
type EventType string

// Types of events.
const (
	EventNormal  EventType = "Normal"
	EventWarning EventType = "Warning"
)

// Event is something that happened to an image snapshot. The same thing happening again raises Count.
type Event struct {
	Type    EventType `json:"type"`
	Reason  Reason    `json:"reason"`
	Message string    `json:"message"`
	Count   int64     `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

const (
	// MaxEvents of one image snapshot. The oldest one makes room for a new one.
	MaxEvents = 50
	// MaxMessageBytes of an event or a status message: enough for any error chain here, and 50 of them stay far below
	// the 1.5 MiB that a Kubernetes store takes for an object.
	MaxMessageBytes = 1024
)

// AddEvent records an event at the time now. Equal events are counted, not repeated.
func (s *ImageSnapshot) AddEvent(now time.Time, kind EventType, reason Reason, message string) {
	message = Shorten(message)
	events := s.Status.Events
	for i := range events {
		e := events[i]
		if e.Type != kind || e.Reason != reason || e.Message != message {
			continue
		}
		e.Count++
		e.Last = now
		// The list stays in the order of the last time.
		s.Status.Events = slices.Delete(events, i, i+1)
		s.Status.Events = append(s.Status.Events, e)
		return
	}
	if len(events) >= MaxEvents {
		s.Status.Events = slices.Delete(events, 0, len(events)-MaxEvents+1)
	}
	s.Status.Events = append(s.Status.Events, Event{Type: kind, Reason: reason, Message: message, Count: 1, First: now, Last: now})
}

// Shorten cuts a message to MaxMessageBytes, at the boundary of a character.
func Shorten(message string) string {
	if len(message) <= MaxMessageBytes {
		return message
	}
	const mark = "…"
	cut := MaxMessageBytes - len(mark)
	for cut > 0 && message[cut]&0xc0 == 0x80 {
		cut--
	}
	return message[:cut] + mark
}
