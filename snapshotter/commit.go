package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
)

// committer turns active snapshots into committed ones.
type committer struct {
	rows     rows
	stacks   *stacks
	holds    *holds
	observer Observer
	step     func(string)
}

// Commit implements snapshots.Snapshotter. Unlike the wrapped snapshotter's it measures the layer before it takes the
// lock of the metadata, so that a large layer does not hold up others.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	want, err := applyOpts(opts)
	if err != nil {
		return err
	}
	want.Labels = publicLabels(want.Labels)
	return s.committer.commit(ctx, name, key, want)
}

func (c *committer) commit(ctx context.Context, name, key string, want snapshots.Info) error {
	n, err := c.rows.node(ctx, key)
	if err != nil {
		return err
	}
	if n.info.Kind != snapshots.KindActive {
		return fmt.Errorf("commit snapshot %s: it is not active: %w", key, errdefs.ErrFailedPrecondition)
	}
	if n.adopted != nil {
		untouched, err := isEmptyDir(c.stacks.upperDir(n.id))
		if err != nil {
			return fmt.Errorf("commit snapshot %s: %w", key, err)
		}
		if untouched {
			return c.commitEarly(ctx, name, n, want)
		}
	}
	if err := checkRebase(n, want.Parent); err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	if strings.HasSuffix(key, remapSuffix) {
		want.Labels = with(want.Labels, labelRemapped, "true")
	}
	usage, err := fs.DiskUsage(ctx, c.stacks.upperDir(n.id))
	if err != nil {
		return fmt.Errorf("measure snapshot %s: %w", key, err)
	}
	if err := c.commitAs(ctx, name, n, want, snapshots.Usage(usage), nil); err != nil {
		return err
	}
	if n.adopted != nil {
		c.holds.releaseAll(ctx, n.adopted.locations())
		if n.adopted.Early != nil {
			c.observer.Miss(ctx, Miss{Layer: *n.adopted.Early, Err: fmt.Errorf(
				"containerd unpacked the layer although disk %s has it, as versions before 2.4 do when they unpack in parallel: %w",
				n.adopted.DiskUUID, errdefs.ErrFailedPrecondition)})
		}
	}
	return nil
}

// commitEarly commits a snapshot with early mounts that containerd left as it was, on the parent that is now known.
func (c *committer) commitEarly(ctx context.Context, name string, n node, want snapshots.Info) error {
	// A disk that has gone missing meanwhile fails this pull; the next one fetches the layer.
	if _, err := c.stacks.layerDir(ctx, n); err != nil {
		return fmt.Errorf("commit snapshot %s: %w", n.info.Name, err)
	}
	n, err := c.rows.node(ctx, n.info.Name) // the layer may have been found on another disk
	if err != nil {
		return err
	}
	r := *n.adopted
	r.Early = nil
	encoded, err := r.encode()
	if err != nil {
		return err
	}
	want.Labels = with(want.Labels, labelAdopted, encoded)
	want.Labels[labelRef] = r.ChainID.String()
	c.step("committing early")
	if err := c.commitAs(ctx, name, n, want, snapshots.Usage{}, func(parent node) error {
		if got := stacked(parent.chainID(), r.DiffID); got != r.ChainID {
			return fmt.Errorf("on parent %q the layer makes chain %s and not %s: %w", parent.info.Name, got, r.ChainID, errdefs.ErrFailedPrecondition)
		}
		return nil
	}); err != nil {
		return err
	}
	c.step("committed early")
	if n.adopted.Early != nil {
		tellHit(ctx, c.observer, *n.adopted.Early, r, r.MatchedBy)
	}
	return nil
}

// commitAs turns the active snapshot n into a committed one. check, if given, sees the parent, or an empty node if
// there is none, and may refuse it.
func (c *committer) commitAs(ctx context.Context, name string, n node, want snapshots.Info, usage snapshots.Usage, check func(parent node) error) error {
	key, parent := n.info.Name, n.info.Parent
	if parent == "" {
		parent = want.Parent
	}
	c.rows.index.add(want.Labels[labelRef], parent, name)
	err := c.rows.write(ctx, func(ctx context.Context) error {
		now, err := lookup(ctx, key)
		if err != nil {
			return err
		}
		if now.id != n.id {
			return fmt.Errorf("another snapshot has this key now: %w", errdefs.ErrFailedPrecondition)
		}
		var below node
		if parent != "" {
			if below, err = lookup(ctx, parent); err != nil {
				return err
			}
		}
		if check != nil {
			if err := check(below); err != nil {
				return err
			}
		}
		_, err = storage.CommitActive(ctx, key, name, usage, snapshots.WithLabels(want.Labels), snapshots.WithParent(want.Parent))
		return err //nolint:wrapcheck // wrapped below
	})
	if err != nil {
		if !errdefs.IsAlreadyExists(err) {
			c.rows.index.remove(want.Labels[labelRef], parent, name)
		}
		return fmt.Errorf("commit snapshot %s as %s: %w", key, name, err)
	}
	c.rows.index.remove(n.ref(), n.info.Parent, key)
	return nil
}

// checkRebase refuses to put a layer on a parent if it was unpacked without one into a bind mount: its whiteouts are
// lost, and files that the image deletes would come back. Only containerd 2.2 asks for that, and only if it is
// configured to.
func checkRebase(n node, parent string) error {
	if parent == "" || n.info.Parent != "" || !isExtractionKey(n.info.Name) || n.adopted != nil {
		return nil
	}
	if _, ok := n.info.Labels[labelApart]; ok {
		return nil
	}
	return fmt.Errorf("this containerd unpacks layers in parallel without saying which, so deleted files would come back: "+
		`take "rebase" out of the proxy plugin's capabilities, or use containerd 2.3 or later: %w`, errdefs.ErrFailedPrecondition)
}

// isEmptyDir is true of a directory with nothing in it.
func isEmptyDir(dir string) (_ bool, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, fmt.Errorf("look into snapshot directory: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look into snapshot directory: %w", err)
	}
	return false, nil
}
