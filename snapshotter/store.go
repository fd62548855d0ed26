package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"
)

// store is the metadata that the wrapped overlay snapshotter and we share. Its transactions are short: nothing in them
// waits for a disk, a mount or a layer source.
type store struct {
	meta *storage.MetaStore
}

func (s store) read(ctx context.Context, fn func(context.Context) error) error {
	return s.meta.WithTransaction(ctx, false, fn)
}

func (s store) write(ctx context.Context, fn func(context.Context) error) error {
	return s.meta.WithTransaction(ctx, true, fn)
}

// exclusive runs fn while nobody else can write to the store, and writes nothing itself.
func (s store) exclusive(ctx context.Context, fn func(context.Context) error) error {
	ctx, tx, err := s.meta.TransactionContext(ctx, true)
	if err != nil {
		return fmt.Errorf("lock metadata: %w", err)
	}
	return errors.Join(fn(ctx), tx.Rollback())
}

// node is one snapshot as the store has it.
type node struct {
	id      string
	info    snapshots.Info
	adopted *record // nil if the content is local
}

// lookup reads a snapshot; it needs a transaction in ctx. One that does not exist is errdefs.ErrNotFound.
func lookup(ctx context.Context, key string) (node, error) {
	id, info, _, err := storage.GetInfo(ctx, key)
	if err != nil {
		return node{}, fmt.Errorf("read snapshot %s: %w", key, err)
	}
	adopted, err := recordOf(info.Labels)
	if err != nil {
		return node{}, fmt.Errorf("read snapshot %s: %w", key, err)
	}
	return node{id: id, info: info, adopted: adopted}, nil
}

// node reads a snapshot in a transaction of its own.
func (s store) node(ctx context.Context, key string) (n node, err error) {
	err = s.read(ctx, func(ctx context.Context) error {
		n, err = lookup(ctx, key)
		return err
	})
	return n, err
}

// lineage reads the parent named and all below it, the highest first; nothing if parent is empty.
func (s store) lineage(ctx context.Context, parent string) (nodes []node, err error) {
	if parent == "" {
		return nil, nil
	}
	err = s.read(ctx, func(ctx context.Context) error {
		for parent != "" {
			n, err := lookup(ctx, parent)
			if err != nil {
				return err
			}
			nodes = append(nodes, n)
			parent = n.info.Parent
		}
		return nil
	})
	return nodes, err
}

func (n node) committed() bool { return n.info.Kind == snapshots.KindCommitted }

// ref is the target label: the chain ID that the snapshot is or is to become.
func (n node) ref() string { return n.info.Labels[labelRef] }

// chainID is the stack of layers that a committed snapshot is, empty if that cannot be told. Adopted ones are proved.
// For local ones the unpacker's target label says it, or else the name under which the unpacker of containerd's client
// library, which sets no labels, commits.
func (n node) chainID() digest.Digest {
	if n.adopted != nil {
		return n.adopted.ChainID
	}
	if d := digestOf(n.ref()); d != "" {
		return d
	}
	return digestOf(lastSegment(n.info.Name))
}
