package imageimport

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"

	"berth.dev/berth/internal/backoff"
	"berth.dev/berth/layerdisk"
)

const (
	// firstRetry and lastRetry bound the wait between attempts for a disk, absentRetry is the wait for a containerd
	// that does not answer, because pods wait for its start.
	firstRetry  = time.Second
	lastRetry   = time.Minute
	absentRetry = 2 * time.Second
)

// states holds the states of all disks. It is safe for concurrent use.
type states struct {
	// mu guards all below. It is never held across anything that can wait.
	mu     sync.Mutex
	wanted func(disk string) bool
	byUUID map[string]*state
	// err is why the content of containerd could not be listed, nil if it could.
	err error
}

// state is the state of one disk. states.mu guards images, err and withheld; only the holder of busy uses the rest.
type state struct {
	// images are sorted by namespace and reference.
	images []Image
	err    error
	// withheld counts the callers that are about to detach the disk.
	withheld int
	// entries were chosen from index.
	index    *layerdisk.Index
	entries  []entry
	failures int
	retryAt  time.Time
	// freeSince is since when only registered images were seen to use the disk; zero if something else uses it.
	freeSince time.Time
}

// want replaces the function that selects the disks whose images are registered.
func (s *states) want(wanted func(disk string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = wanted
}

func (s *states) isWanted(disk string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted(disk)
}

// of returns the state of a disk, and makes it if there is none.
func (s *states) of(uuid string) *state {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.byUUID[uuid]
	if st == nil {
		st = &state{}
		s.byUUID[uuid] = st
	}
	return st
}

// status returns what became of the images of the disk with this UUID, and what keeps all of them from being
// registered.
func (s *states) status(name, uuid string) ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.byUUID[uuid]
	if st == nil || st.err == nil && len(st.images) == 0 {
		if s.err != nil && s.wanted(name) {
			return nil, s.err
		}
		return nil, nil
	}
	return slices.Clone(st.images), st.err
}

// cannotLook notes why the content of containerd cannot be listed. It logs only the begin and the end of that state:
// containerd may be away for long.
func (s *states) cannotLook(ctx context.Context, err error) {
	s.mu.Lock()
	was := s.err
	s.err = err
	s.mu.Unlock()
	switch {
	case err != nil && was == nil && ctx.Err() == nil:
		log.G(ctx).WithError(err).Warn("cannot compare the images of disks with those of containerd, trying again")
	case err == nil && was != nil:
		log.G(ctx).Info("images of disks are compared with those of containerd again")
	}
}

// keep forgets the states of disks that are not there any more.
func (s *states) keep(disks []Disk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uuid, st := range s.byUUID {
		if st.withheld == 0 && !slices.ContainsFunc(disks, func(d Disk) bool { return d.UUID == uuid }) {
			delete(s.byUUID, uuid)
		}
	}
}

// attempted notes how far the images of a disk have come.
func (s *states) attempted(ctx context.Context, d Disk, st *state, list []Image, err error) (again time.Time) {
	now := time.Now()
	s.mu.Lock()
	fresh := err != nil && !now.Before(st.retryAt)
	st.images, st.err = list, err
	switch {
	case err == nil:
		st.failures, st.retryAt = 0, time.Time{}
	case fresh && lost(err):
		st.retryAt = now.Add(absentRetry)
	case fresh:
		st.retryAt = now.Add(backoff.Doubling{First: firstRetry, Most: lastRetry}.After(st.failures))
		st.failures++
	}
	again = st.retryAt
	s.mu.Unlock()
	if fresh && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("disk", d.Name).Warn("not all images of the disk are registered, trying again")
	}
	return again
}

// takenBack notes that nothing of a disk is registered any more.
func (s *states) takenBack(uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.byUUID[uuid]; st != nil {
		st.images, st.freeSince = nil, time.Time{}
	}
}

func (s *states) anyWithheld() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.byUUID {
		if st.withheld > 0 {
			return true
		}
	}
	return false
}

// withhold adds n to the number of callers that are about to detach a disk.
func (s *states) withhold(st *state, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.withheld += n
}
