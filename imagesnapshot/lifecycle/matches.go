package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
)

// matches counts the pulls that image snapshots were chosen for. Each pull of a node is one, so they are collected and
// written together. It is safe for concurrent use.
type matches struct {
	objects objects

	mu sync.Mutex
	// counts, by name, are not written yet.
	counts map[string]*matchCount
}

type matchCount struct {
	id    string
	count int64
	last  time.Time
}

func newMatches(o objects) *matches {
	return &matches{objects: o, counts: make(map[string]*matchCount)}
}

// record one.
func (m *matches) record(name, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.counts[name]
	if c == nil || c.id != id {
		c = &matchCount{id: id}
		m.counts[name] = c
	}
	c.count++
	c.last = time.Now().UTC()
}

// lastUse is that of the policy, with the matches that are not written yet.
func (m *matches) lastUse(s *imagesnapshot.ImageSnapshot) time.Time {
	last := policy.LastUse(s)
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.counts[s.Name]; c != nil && c.id == s.ID && c.last.After(last) {
		last = c.last
	}
	return last
}

// flush writes them. What cannot be written waits for the next time.
func (m *matches) flush(ctx context.Context) error {
	m.mu.Lock()
	counts := m.counts
	m.counts = make(map[string]*matchCount)
	m.mu.Unlock()
	var first error
	for name, c := range counts {
		_, err := m.objects.mutate(ctx, name, c.id, func(s *imagesnapshot.ImageSnapshot) error {
			s.Status.MatchCount += c.count
			if c.last.After(s.Status.LastMatched) {
				s.Status.LastMatched = c.last
			}
			return nil
		})
		if err == nil || errdefs.IsNotFound(err) {
			continue
		}
		if first == nil {
			first = fmt.Errorf("record matches of image snapshot %s: %w", name, err)
		}
		m.putBack(name, c)
	}
	return first
}

// putBack puts back what could not be written.
func (m *matches) putBack(name string, c *matchCount) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.counts[name]; now == nil {
		m.counts[name] = c
	} else if now.id == c.id {
		now.count += c.count
	}
}
