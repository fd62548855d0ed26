package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/layerdisk"
)

// location is a layer of a disk that is held for an adopted snapshot.
type location struct {
	Holder      string `json:"holder"`
	DiskUUID    string `json:"disk"`
	LayerNumber int    `json:"layer"`
}

// locations are all that are held for the snapshot, the one that it was adopted from first. Each has the same layer,
// and each stays held: a container that was started while one of them served still uses it.
func (r *record) locations() []location {
	return append([]location{{r.Holder, r.DiskUUID, r.LayerNumber}}, r.Moved...)
}

// layerDir is the directory of an adopted snapshot's layer on whichever attached disk has it. Where the record says
// that it lies is a hint: if none of those disks serves, any other is taken that proves the same chain.
// errdefs.ErrUnavailable says what is wrong with the disk of the record if there is none.
func (s *stacks) layerDir(ctx context.Context, n node) (string, error) {
	var first error
	for _, p := range n.adopted.locations() {
		dir, err := s.locationDir(ctx, p)
		if err == nil {
			return dir, nil
		}
		if first == nil {
			first = err
		}
	}
	return s.move(ctx, n, first)
}

// locationDir asks the source where a layer lies that is held.
func (s *stacks) locationDir(ctx context.Context, p location) (string, error) {
	dir, err := s.source.LayerDir(ctx, p.DiskUUID, p.LayerNumber)
	if err == nil {
		err = checkMountPath(dir)
	}
	if err != nil {
		if !errdefs.IsUnavailable(err) {
			// Whatever the source calls it: to containerd "not found" would mean the snapshot.
			err = fmt.Errorf("%w: %v", errdefs.ErrUnavailable, err) //nolint:errorlint // its class must not show
		}
		return "", fmt.Errorf("layer %d of disk %s: %w", p.LayerNumber, p.DiskUUID, err)
	}
	return dir, nil
}

// errMoved ends the transaction of a move that somebody else has made.
var errMoved = errors.New("another disk serves the snapshot already")

// move finds the layer on another disk, holds it there, and writes that down before the directory is used, so that the
// disk is held again after a restart. lost says why none of the snapshot's locations serves.
func (s *stacks) move(ctx context.Context, n node, lost error) (string, error) {
	// The record's diff ID was proved to make up the chain when the snapshot was adopted.
	want := LayerRequest{LayerName: layerdisk.LayerName{ChainID: n.adopted.ChainID, DiffID: n.adopted.DiffID}}
	holder, held, err := s.holds.acquire(ctx, want)
	if err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("find layer of chain %s on another disk: %w", n.adopted.ChainID, ctx.Err())
		}
		return "", fmt.Errorf("%w; no other disk serves it: %v", lost, err) //nolint:errorlint // its class must not show
	}
	s.step("found elsewhere")
	now, err := s.noteMove(ctx, n, location{holder, held.DiskUUID, held.LayerNumber})
	if err != nil {
		s.holds.release(ctx, holder)
	}
	switch {
	case errors.Is(err, errMoved):
		last := now.locations()
		return s.locationDir(ctx, last[len(last)-1])
	case err != nil:
		return "", fmt.Errorf("serve snapshot %s from another disk: %w", n.info.Name, err)
	}
	s.step("moved")
	log.G(ctx).WithError(lost).WithFields(log.Fields{"snapshot": n.info.Name, "chain_id": n.adopted.ChainID, "disk": held.DiskUUID}).
		Info("snapshot is served from another disk")
	return held.Dir, nil
}

// noteMove adds a location to a snapshot's record. If others did that meanwhile, the record that is there now comes
// with errMoved.
func (s *stacks) noteMove(ctx context.Context, n node, to location) (now record, err error) {
	err = s.rows.write(ctx, func(ctx context.Context) error {
		current, err := lookup(ctx, n.info.Name)
		if err != nil {
			return err
		}
		if current.id != n.id || current.adopted == nil {
			return fmt.Errorf("the snapshot has changed meanwhile: %w", errdefs.ErrUnavailable)
		}
		now = *current.adopted
		known := func(p location) bool { return p.DiskUUID == to.DiskUUID && p.LayerNumber == to.LayerNumber }
		if len(now.Moved) != len(n.adopted.Moved) || slices.ContainsFunc(now.locations(), known) {
			return errMoved
		}
		now.Moved = append(slices.Clone(now.Moved), to)
		encoded, err := now.encode()
		if err != nil {
			return err
		}
		_, err = storage.UpdateInfo(ctx, snapshots.Info{Name: n.info.Name, Labels: map[string]string{labelAdopted: encoded}},
			"labels."+labelAdopted)
		return err //nolint:wrapcheck // wrapped by the caller
	})
	return now, err
}
