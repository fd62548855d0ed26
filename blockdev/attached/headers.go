package attached

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/sysblock"
	"berth.dev/berth/layerdisk"
)

// found is what was read from a device.
type found struct {
	device sysblock.Device
	header layerdisk.Header
	// none says that there is no berth header.
	none bool
	err  error
}

// reading is a read under way.
type reading struct {
	device sysblock.Device
	done   chan struct{}
	result found
}

// headers are those that have been read: a device is read once for as long as it is the same and no event says that it
// changed. It is safe for concurrent use.
type headers struct {
	// read reads a header; tests without real devices have their own.
	read func(sysblock.Device) (layerdisk.Header, error)

	// mu guards known and reading, by device name.
	mu      sync.Mutex
	known   map[string]found
	reading map[string]*reading
}

func newHeaders() *headers {
	return &headers{read: readHeader, known: make(map[string]found), reading: make(map[string]*reading)}
}

// forget makes the next look read the device again; an empty name is all. A read under way counts only for the latter,
// or one that never ends would be joined by another each time.
func (h *headers) forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "" {
		clear(h.known)
	}
	delete(h.known, name)
	delete(h.reading, name)
}

// keepOnly forgets devices that are gone, so that memory does not grow.
func (h *headers) keepOnly(devices []sysblock.Device) {
	there := make(map[string]bool, len(devices))
	for _, d := range devices {
		there[d.Name] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.known {
		if !there[name] {
			delete(h.known, name)
		}
	}
}

// readWait is how long a device may take to give its first block, which a lazily restored volume fetches from far.
const readWait = 5 * time.Second

// look reads what is on the device, unless that is known already. A device that does not answer in time is asked on in
// the background, and a later look gets the answer.
func (h *headers) look(ctx context.Context, d sysblock.Device) found {
	h.mu.Lock()
	if f, ok := h.known[d.Name]; ok && f.device.Same(d) && f.device.SizeBytes == d.SizeBytes {
		h.mu.Unlock()
		f.device = d
		return f
	}
	r := h.reading[d.Name]
	if r == nil || !r.device.Same(d) {
		r = &reading{device: d, done: make(chan struct{})}
		h.reading[d.Name] = r
		go h.run(r)
	}
	h.mu.Unlock()
	timer := time.NewTimer(readWait)
	defer timer.Stop()
	select {
	case <-r.done:
		f := r.result
		f.device = d
		return f
	case <-timer.C:
		return found{device: d, none: true, err: fmt.Errorf("it has not answered for %s: %w", readWait, errdefs.ErrUnavailable)}
	case <-ctx.Done():
		return found{device: d, none: true, err: ctx.Err()}
	}
}

// run ends when the device answers; the kernel lets nobody interrupt such a read.
func (h *headers) run(r *reading) {
	f := found{device: r.device}
	f.header, f.err = h.read(r.device)
	// What cannot be read at all shows no header, and is nobody's business here.
	f.none = f.err != nil && !errors.Is(f.err, layerdisk.ErrVersion) && !errors.Is(f.err, layerdisk.ErrCorrupt)
	h.mu.Lock()
	defer h.mu.Unlock()
	r.result = f
	if h.reading[r.device.Name] == r {
		delete(h.reading, r.device.Name)
		// Other errors than these may be gone the next time.
		if f.err == nil || !f.none || errors.Is(f.err, layerdisk.ErrNotLayerDisk) {
			h.known[r.device.Name] = f
		}
	}
	close(r.done)
}

// readHeader reads the first block, and only of a layer disk a little more.
func readHeader(d sysblock.Device) (layerdisk.Header, error) {
	first, err := device.ReadFirst(d.Path, d.Number)
	if err != nil {
		return layerdisk.Header{}, err
	}
	if _, err := layerdisk.ParseHeader(first); err != nil {
		return layerdisk.Header{}, err
	}
	f, err := os.Open(d.Path)
	if err != nil {
		return layerdisk.Header{}, fmt.Errorf("open device: %w", err)
	}
	defer f.Close()
	return layerdisk.ReadHeader(f)
}
