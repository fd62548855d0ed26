package stage

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/layerdisk"
)

// Visit describes a disk that is mounted, and stays so for as long as the visit lasts. It converts into readahead.Disk.
type Visit struct {
	Name     string
	Identity layerdisk.Identity
	// Device is the path of its block device, DeviceNumber what that path must still stand for.
	Device       string
	DeviceNumber uint64
	MountPoint   string
	// Mounted is when the disk was mounted, which an earlier daemon may have done.
	Mounted time.Time
	// SizeBytes of the device that belong to the disk.
	SizeBytes int64
	// Index is shared and must not be changed.
	Index *layerdisk.Index
}

// LayerDir is the absolute path of a layer's tree, free of symbolic links.
func (v *Visit) LayerDir(number int) string { return layerDirAt(v.MountPoint, number) }

// Visit lets somebody read a disk without holding it: the disk does not stay for a visitor's sake. The returned context
// ends with ctx, and when the disk stops serving. The visitor then closes what it has open of the disk and calls end,
// which it calls in any case. Unmounting waits for that. A disk that does not serve is errdefs.ErrUnavailable, an
// unknown one errdefs.ErrNotFound.
func (s *Stager) Visit(ctx context.Context, uuid string) (visit context.Context, v Visit, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.fleet.byUUID[uuid]
	switch {
	case d == nil:
		return nil, Visit{}, nil, fmt.Errorf("visit disk %s: it is not on this node: %w", uuid, errdefs.ErrNotFound)
	case !d.up || s.closed:
		return nil, Visit{}, nil, fmt.Errorf("visit disk %s (%s): it is not ready: %w", d.rec.Spec.Name, uuid, errdefs.ErrUnavailable)
	}
	visit, cancel := context.WithCancel(ctx)
	if d.visitors == nil {
		d.visitors = make(map[int]context.CancelFunc)
	}
	number := d.visited
	d.visited++
	d.visitors[number] = cancel
	v = Visit{
		Name: d.rec.Spec.Name, Identity: d.rec.Identity, Device: d.rec.Device, DeviceNumber: d.rec.DeviceNumber,
		MountPoint: d.rec.target(s.root), Mounted: d.rec.Since, SizeBytes: d.sizeBytes, Index: d.lookup.Index(),
	}
	return visit, v, sync.OnceFunc(func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(d.visitors, number)
		if !d.up {
			s.fleet.changed() // who empties the disk waits for that
		}
	}), nil
}

// endVisits ends the contexts of all visitors. The caller holds mu.
func (d *disk) endVisits() {
	for _, cancel := range d.visitors {
		cancel()
	}
}

// awaitVisitors waits until the last visitor has left. Their contexts ended when the disk stopped serving.
func (s shared) awaitVisitors(ctx context.Context, d *disk) error {
	if err := s.wait(ctx, func() bool { return len(d.visitors) == 0 }); err != nil {
		return fmt.Errorf("wait for what still reads ahead on the disk: %w", err)
	}
	return nil
}
