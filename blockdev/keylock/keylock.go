// Package keylock lets one operation at a time work on each of many things that are known by a key, such as a volume's
// ID.
package keylock

import (
	"context"
	"sync"
)

// Set has the keys that are in use. Its zero value is ready.
type Set struct {
	// mu guards busy, which has a channel for each key in use, closed when that use ends.
	mu   sync.Mutex
	busy map[string]chan struct{}
}

// Do runs do while nothing else runs for the key, and returns its error. Operations on disks can take long, so waiting
// for the key obeys ctx; do is not run if ctx has ended.
func (s *Set) Do(ctx context.Context, key string, do func() error) error {
	for {
		other := s.take(key)
		if other == nil {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer s.release(key)
	if err := ctx.Err(); err != nil {
		return err
	}
	return do()
}

// take takes the key or returns what to wait for.
func (s *Set) take(key string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.busy[key]; other != nil {
		return other
	}
	if s.busy == nil {
		s.busy = make(map[string]chan struct{})
	}
	s.busy[key] = make(chan struct{})
	return nil
}

func (s *Set) release(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.busy[key])
	delete(s.busy, key)
}
