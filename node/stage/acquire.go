package stage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/layerdisk"
)

// Layers finds layers on the disks that serve, and holds them. It is safe for concurrent use.
type Layers struct {
	*state
	shared    shared
	inspector *inspector
	// attachWait is Config.AttachWait.
	attachWait time.Duration
}

// Acquire finds the layer on a disk that serves and holds it for holder until Release. A holder holds one layer:
// acquiring that again changes nothing, acquiring another is errdefs.ErrFailedPrecondition. If no disk serves the layer
// the error is a *MissError. The cost does not grow with disks, layers or holders.
//
// A disk is looked at before its layer is handed out: one that does not answer any more, or answers otherwise than
// before, is taken out of service, and the layer looked for elsewhere.
func (s *Layers) Acquire(ctx context.Context, holder string, q layerdisk.LayerName) (Held, error) {
	return s.acquire(ctx, holder, q, waitForDisk)
}

// AcquireReady is Acquire, but does not wait for disks that are on their way.
func (s *Layers) AcquireReady(ctx context.Context, holder string, q layerdisk.LayerName) (Held, error) {
	return s.acquire(ctx, holder, q, func(context.Context, <-chan struct{}, time.Time) bool { return false })
}

// waiter says whether it is worth looking again, after it has waited for a change of the fleet until then.
type waiter func(ctx context.Context, change <-chan struct{}, until time.Time) bool

func (s *Layers) acquire(ctx context.Context, holder string, q layerdisk.LayerName, wait waiter) (Held, error) {
	for {
		t, err := s.take(holder, q)
		if err == nil {
			err = s.inspector.check(ctx, t.disk, t.held.Dir)
			if err == nil {
				return t.held, nil
			}
			s.giveBack(holder, t)
			if ctx.Err() != nil {
				return Held{}, fmt.Errorf("acquire layer: %w", ctx.Err())
			}
			s.inspector.broken(ctx, t.disk, err)
			continue
		}
		miss := (*MissError)(nil)
		if !errors.As(err, &miss) || !wait(ctx, t.change, t.until) {
			return Held{}, fmt.Errorf("acquire layer: %w", err)
		}
	}
}

// taken is what take found, or how long to wait for a change that may let it find more.
type taken struct {
	held   Held
	disk   *disk
	fresh  bool
	change <-chan struct{}
	until  time.Time
}

// take holds the layer before it is checked, so that its disk is not lowered meanwhile.
func (s *Layers) take(holder string, q layerdisk.LayerName) (taken, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := taken{fresh: true}
	if err := s.shared.ready(); err != nil {
		return t, err
	}
	if held, ok := s.fleet.holds.byHolder[holder]; ok {
		return s.takeAgain(held, q)
	}
	l, match, err := s.find(q)
	if err != nil {
		if pending := s.fleet.lastPending(); !pending.IsZero() {
			t.change, t.until = s.fleet.change, pending.Add(s.attachWait)
		}
		return t, err
	}
	t.held, t.disk = s.held(l, match, q), l.disk
	s.fleet.holds.put(Hold{Holder: holder, DiskUUID: t.held.DiskUUID, LayerNumber: t.held.LayerNumber})
	return t, nil
}

func (s *Layers) takeAgain(hold Hold, q layerdisk.LayerName) (taken, error) {
	d := s.fleet.byUUID[hold.DiskUUID]
	if d == nil || !d.up || hold.LayerNumber < 0 || hold.LayerNumber >= len(d.lookup.Index().Layers) {
		return taken{}, &MissError{MissFailed, fmt.Sprintf("layer %d of disk %s, which is held already, cannot be served", hold.LayerNumber, hold.DiskUUID)}
	}
	l := located{d, hold.LayerNumber}
	match, ok := l.matches(q)
	if !ok {
		return taken{}, fmt.Errorf("%s holds layer %d of disk %s already, release that first: %w", hold.Holder, hold.LayerNumber, d.rec.Spec.Name, errdefs.ErrFailedPrecondition)
	}
	return taken{held: s.held(l, match, q), disk: d}, nil
}

// matches says whether the query means this layer.
func (l located) matches(q layerdisk.LayerName) (layerdisk.Match, bool) {
	layer := l.layerOf()
	if _, found, ok := l.disk.lookup.Chain(q.ChainID); ok && found.Number == l.layer {
		return layerdisk.MatchChainID, true
	}
	if layer.DiffID == q.ChainID { // at the bottom, see layerTable.find
		return "", false
	}
	if q.DiffID == layer.DiffID && !layer.StackBound {
		return layerdisk.MatchDiffID, true
	}
	if found, _, ok := l.disk.lookup.Blob(q.Blob); ok && found.Number == l.layer {
		return layerdisk.MatchBlob, true
	}
	return "", false
}

// find looks for the layer on the disks that serve. The caller holds mu.
func (s *Layers) find(q layerdisk.LayerName) (located, layerdisk.Match, error) {
	inUse := func(d *disk) bool { return s.fleet.holders(d) > 0 }
	if l, match, ok := s.fleet.serving.find(q, inUse); ok {
		if got := l.layerOf().DiffID; q.DiffID != "" && q.DiffID != got {
			return located{}, "", &MissError{MissContradiction, fmt.Sprintf("the %s of the layer is on disk %s, but with diff ID %s and not %s", match, l.disk.rec.Spec.Name, got, q.DiffID)}
		}
		return l, match, nil
	}
	if l, _, ok := s.fleet.withheld.find(q, inUse); ok {
		name := l.disk.rec.Spec.Name
		if l.disk.rec.Draining {
			return located{}, "", &MissError{MissDraining, fmt.Sprintf("disk %s has the layer, but is being drained", name)}
		}
		return located{}, "", &MissError{MissFailed, fmt.Sprintf("disk %s has the layer, but is out of service: %v", name, l.disk.err)}
	}
	switch {
	case s.fleet.anyPending():
		return located{}, "", &MissError{MissNotReady, "no disk that is ready has the layer, others are still on their way"}
	case len(s.fleet.serving.disks) == 0:
		return located{}, "", &MissError{MissNoDisk, "no layer disk is ready on this node"}
	}
	return located{}, "", &MissError{MissNotOnDisk, fmt.Sprintf("none of the %d layer disks has the layer", len(s.fleet.serving.disks))}
}

func (s *Layers) held(l located, match layerdisk.Match, q layerdisk.LayerName) Held {
	layer := l.layerOf()
	h := Held{
		Dir:         s.shared.layerDir(l.disk, l.layer),
		DiskUUID:    l.disk.rec.Identity.UUID,
		DiskName:    l.disk.rec.Spec.Name,
		LayerNumber: l.layer,
		DiffID:      layer.DiffID,
		MatchedBy:   match,
	}
	for i, b := range layer.Blobs {
		if i == 0 || b.Digest == q.Blob {
			h.BlobSize = b.Size
		}
	}
	return h
}

func (s shared) layerDir(d *disk, number int) string {
	return layerDirAt(d.rec.target(s.root), number)
}

func layerDirAt(mountPoint string, number int) string {
	return filepath.Join(mountPoint, filepath.FromSlash(layerdisk.LayerDir(number)))
}

func (s *Layers) giveBack(holder string, t taken) {
	if !t.fresh {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared.release(holder)
}

// waitForDisk is the waiter of Acquire.
func waitForDisk(ctx context.Context, change <-chan struct{}, until time.Time) bool {
	left := time.Until(until)
	if change == nil || left <= 0 {
		return false
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-change:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// broken takes a disk out of service.
func (s *inspector) broken(ctx context.Context, d *disk, cause error) {
	s.mu.Lock()
	since := d.upSince
	s.mu.Unlock()
	s.brokenSince(ctx, d, since, cause)
}

// brokenSince takes a disk out of service that has been in service since then; one that has come back meanwhile stays.
func (s *inspector) brokenSince(ctx context.Context, d *disk, since time.Time, cause error) {
	s.mu.Lock()
	was := d.up && d.upSince.Equal(since)
	disk := s.fleet.status(d, s.root)
	if was {
		d.err = cause
		d.retryAt = time.Now().Add(firstRetry)
		s.fleet.stopServing(d)
	}
	s.mu.Unlock()
	if !was {
		return // another has seen it before
	}
	s.observer.DiskFailed(disk, cause)
	log.G(ctx).WithError(cause).WithFields(log.Fields{"disk": disk.Name, "image_snapshot": disk.ImageSnapshot.Name, "snapshots": disk.Holders}).
		Error("layer disk is out of service: its layers are pulled until it is back, containers that use it get I/O errors")
	s.shared.wake()
}

// Locate is what Acquire would find now, without holding it, waiting, or looking at the disk.
func (s *Stager) Locate(q layerdisk.LayerName) (Held, error) { return s.Layers.locate(q) }

// locate is Locate.
func (s *Layers) locate(q layerdisk.LayerName) (Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.shared.ready()
	if err != nil {
		return Held{}, fmt.Errorf("locate layer: %w", err)
	}
	l, match, err := s.find(q)
	if err != nil {
		return Held{}, fmt.Errorf("locate layer: %w", err)
	}
	return s.held(l, match, q), nil
}

// LayerDir is the directory of a layer that is held, as far as is known without a look at the disk. A disk that is not
// mounted, not healthy or not known is errdefs.ErrUnavailable.
func (s *Layers) LayerDir(diskUUID string, number int) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.fleet.byUUID[diskUUID]
	switch {
	case d == nil:
		return "", fmt.Errorf("find layer %d: layer disk %s is not on this node, attach it: %w", number, diskUUID, errdefs.ErrUnavailable)
	case !d.up && d.err != nil:
		return "", fmt.Errorf("find layer %d: layer disk %s (%s) is out of service: %w: %w", number, d.rec.Spec.Name, diskUUID, d.err, errdefs.ErrUnavailable)
	case !d.up:
		return "", fmt.Errorf("find layer %d: layer disk %s (%s) is not ready: %w", number, d.rec.Spec.Name, diskUUID, errdefs.ErrUnavailable)
	case number < 0 || number >= len(d.lookup.Index().Layers):
		return "", fmt.Errorf("find layer %d: layer disk %s (%s) has no such layer: %w", number, d.rec.Spec.Name, diskUUID, errdefs.ErrUnavailable)
	}
	return s.shared.layerDir(d, number), nil
}

// ServedDir is LayerDir after a look at the disk, as Acquire takes it: one that does not answer any more, or answers
// otherwise than before, is taken out of service, and the error says so.
func (s *Layers) ServedDir(ctx context.Context, diskUUID string, number int) (string, error) {
	dir, err := s.LayerDir(diskUUID, number)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	d := s.fleet.byUUID[diskUUID]
	var since time.Time
	if d != nil {
		since = d.upSince
	}
	s.mu.Unlock()
	if d == nil {
		return dir, nil
	}
	err = s.inspector.check(ctx, d, dir)
	if err == nil {
		return dir, nil
	}
	if ctx.Err() != nil {
		return "", fmt.Errorf("find layer %d: %w", number, ctx.Err())
	}
	s.inspector.brokenSince(ctx, d, since, err)
	return s.LayerDir(diskUUID, number)
}

// Release ends what the holder holds. Holding nothing is no error. It waits for no disk. Its error is always nil today
// and there for the interfaces it fits.
func (s *Layers) Release(_ context.Context, holder string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared.release(holder)
	return nil
}

// release ends a hold. The caller holds mu.
func (s shared) release(holder string) {
	if s.fleet.holds.release(holder) {
		s.wake() // a disk may be idle now
	}
}
