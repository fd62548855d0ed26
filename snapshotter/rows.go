package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// rows are the snapshots in the store, with the index that finds them by what they are to become.
type rows struct {
	store
	index *index
}

// drop removes a snapshot that nobody has seen.
func (r rows) drop(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	_, err := r.remove(ctx, key)
	return err
}

// remove takes a snapshot out of the store and the index, and returns what it was.
func (r rows) remove(ctx context.Context, key string) (n node, err error) {
	err = r.write(ctx, func(ctx context.Context) error {
		if n, err = lookup(ctx, key); err != nil {
			return err
		}
		_, _, err = storage.Remove(ctx, key)
		return err //nolint:wrapcheck // wrapped below
	})
	if err != nil {
		return node{}, fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	r.index.remove(n.ref(), n.info.Parent, key)
	return n, nil
}

// adoptedFor reads the adopted snapshots for a pair of chain and parent; it needs a transaction in ctx.
func (r rows) adoptedFor(ctx context.Context, chainID digest.Digest, parent string) (nodes []node, err error) {
	for _, name := range r.index.lookup(chainID.String(), parent) {
		n, err := lookup(ctx, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n.committed() && n.adopted != nil && n.adopted.ChainID == chainID && n.info.Parent == parent {
			nodes = append(nodes, n)
		}
	}
	return nodes, nil
}
