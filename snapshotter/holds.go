package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/uuid"
)

// releaseTimeout bounds giving up a hold, which must not be cut short because a client went away.
const releaseTimeout = 30 * time.Second

// holds takes layers from the source and gives them back.
type holds struct {
	source LayerSource

	mu  sync.Mutex // guards due
	due []string   // holders that could not be released and will be tried again
}

// acquire holds a layer that is proved to be the one requested. A request with no parent chain is one for a lowest
// layer.
func (h *holds) acquire(ctx context.Context, want LayerRequest) (holder string, held HeldLayer, err error) {
	holder = "snapshot-" + uuid.NewString()
	held, err = h.source.Acquire(ctx, holder, want)
	if err == nil {
		err = prove(ctx, held, want)
	}
	if err == nil {
		return holder, held, nil
	}
	if !errdefs.IsNotFound(err) {
		// An answer that was lost or is refused may have left a hold.
		h.release(ctx, holder)
	}
	return "", HeldLayer{}, err
}

// prove checks that the layer is what the chain ID names. The chain ID is a digest over the digests of all layers up to
// this one, so no label, whoever wrote it, can make other bytes pass.
func prove(ctx context.Context, held HeldLayer, want LayerRequest) error {
	if err := held.DiffID.Validate(); err != nil {
		return fmt.Errorf("layer %d of disk %s has no proved diff ID: %w", held.LayerNumber, held.DiskUUID, errdefs.ErrInternal)
	}
	// A diff ID in the request is proved to make up the chain.
	if got := stacked(want.ParentChainID, held.DiffID); got != want.ChainID && (want.DiffID == "" || held.DiffID != want.DiffID) {
		return fmt.Errorf("layer %d of disk %s, found by %s, makes chain %s here and not %s: %w",
			held.LayerNumber, held.DiskUUID, held.MatchedBy, got, want.ChainID, errdefs.ErrFailedPrecondition)
	}
	if err := checkMountPath(held.Dir); err != nil {
		return fmt.Errorf("layer %d of disk %s: %w", held.LayerNumber, held.DiskUUID, err)
	}
	info, err := lookAt(ctx, held.Dir)
	if err != nil {
		return fmt.Errorf("layer %d of disk %s: %w", held.LayerNumber, held.DiskUUID, errors.Join(err, errdefs.ErrUnavailable))
	}
	if !info.IsDir() {
		return fmt.Errorf("layer %d of disk %s: %s is not a directory: %w", held.LayerNumber, held.DiskUUID, held.Dir, errdefs.ErrInternal)
	}
	return nil
}

// release gives up a hold. What holds it is gone already, so an error changes nothing but that it is tried again later.
func (h *holds) release(ctx context.Context, holder string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := h.source.Release(ctx, holder); err != nil {
		log.G(ctx).WithError(err).WithField("holder", holder).Warn("layer is not released yet")
		h.mu.Lock()
		defer h.mu.Unlock()
		h.due = append(h.due, holder)
	}
}

// releaseAll gives up several holds.
func (h *holds) releaseAll(ctx context.Context, all []location) {
	for _, l := range all {
		h.release(ctx, l.Holder)
	}
}

// retry releases what could not be released before.
func (h *holds) retry(ctx context.Context) {
	h.mu.Lock()
	due := h.due
	h.due = nil
	h.mu.Unlock()
	for _, holder := range due {
		h.release(ctx, holder)
	}
}
