package loopcsi

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/internal/durable"
)

// holders says which node each attached volume is attached to: the loop driver itself knows one machine. What is
// attached and not in it is whose asks first.
type holders struct {
	// file that keeps it over restarts; empty is none.
	file string

	mu     sync.Mutex
	byID   map[string]string
	loaded bool
}

// take notes that a node is about to have the volume: FailedPrecondition if another one has it.
func (h *holders) take(volumeID, node string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.load(); err != nil {
		return err
	}
	switch h.byID[volumeID] {
	case node:
		return nil
	case "":
		h.byID[volumeID] = node
		return h.save()
	}
	return status.Errorf(codes.FailedPrecondition, "volume %s is attached to node %s", volumeID, h.byID[volumeID])
}

// release notes that nobody has the volume any more.
func (h *holders) release(volumeID string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.load(); err != nil {
		return err
	}
	if _, ok := h.byID[volumeID]; !ok {
		return nil
	}
	delete(h.byID, volumeID)
	return h.save()
}

// of is the node that has an attached volume, or is about to; empty is any.
func (h *holders) of(volumeID string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.load(); err != nil {
		return "", err
	}
	return h.byID[volumeID], nil
}

// load is called with mu held.
func (h *holders) load() error {
	if h.loaded {
		return nil
	}
	h.byID = make(map[string]string)
	if h.file != "" {
		saved, found, err := durable.Read[map[string]string](h.file)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if found {
			h.byID = saved
		}
	}
	h.loaded = true
	return nil
}

// save is called with mu held.
func (h *holders) save() error {
	if h.file == "" {
		return nil
	}
	if err := durable.Write(h.file, h.byID); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}
