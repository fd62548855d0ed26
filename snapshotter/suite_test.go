package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// TestSuite runs containerd's conformance tests: under the stock snapshotter's name, because the check of renames
// expects something else of others.
func TestSuite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := snapshotter.Open(ctx, snapshotter.Config{Root: root, Source: newSource()})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}

// TestSuiteOverAdopted runs the same with an adopted layer below all that the tests prepare, so that each check meets
// lower directories on a disk.
func TestSuiteOverAdopted(t *testing.T) {
	im := forge(t, "base", nil, tarOf(t))
	d := newDisk(t, t.TempDir(), 1, im.layers...)
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		// 128 layers only fit on a page if all of them are below the root.
		below := *d
		below.mount = filepath.Join(root, "d", "1")
		if err := os.MkdirAll(below.mount, 0o755); err != nil {
			return nil, nil, err
		}
		bind := mount.Mount{Type: "bind", Source: d.mount, Options: []string{"rbind", "ro"}}
		if err := bind.Mount(below.mount); err != nil {
			return nil, nil, err
		}
		s, err := snapshotter.Open(ctx, snapshotter.Config{Root: root, Source: newSource(&below)})
		if err != nil {
			return nil, nil, err
		}
		return &overAdopted{Snapshotter: s, base: adopt(ctx, t, s, "extract-1 ", "", im.layers[0])}, func() error {
			return errors.Join(s.Close(), mount.UnmountAll(below.mount, 0))
		}, nil
	})
}

// adopt has a snapshotter adopt a layer and returns the name it got.
func adopt(ctx context.Context, t testing.TB, s snapshots.Snapshotter, key, parent string, l layer) string {
	t.Helper()
	_, err := s.Prepare(ctx, key+l.chainID.String(), parent, snapshots.WithLabels(map[string]string{
		"containerd.io/snapshot.ref": l.chainID.String(), "containerd.io/snapshot/diff-id": l.diffID.String(),
	}))
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	var name string
	require.NoError(t, s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		require.Equal(t, snapshots.KindCommitted, info.Kind)
		name = info.Name
		return nil
	}, fmt.Sprintf("labels.%q==%s,parent==%q", "containerd.io/snapshot.ref", l.chainID, parent)))
	require.NotEmpty(t, name)
	return name
}

// overAdopted puts all snapshots on top of base, without showing it.
type overAdopted struct {
	*snapshotter.Snapshotter
	base string
}

func (o *overAdopted) on(parent string) string {
	if parent == "" {
		return o.base
	}
	return parent
}

func (o *overAdopted) hide(info snapshots.Info) snapshots.Info {
	if info.Parent == o.base {
		info.Parent = ""
	}
	return info
}

func (o *overAdopted) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return o.Snapshotter.Prepare(ctx, key, o.on(parent), opts...)
}

func (o *overAdopted) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return o.Snapshotter.View(ctx, key, o.on(parent), opts...)
}

func (o *overAdopted) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := o.Snapshotter.Stat(ctx, key)
	return o.hide(info), err
}

func (o *overAdopted) Update(ctx context.Context, info snapshots.Info, paths ...string) (snapshots.Info, error) {
	info, err := o.Snapshotter.Update(ctx, info, paths...)
	return o.hide(info), err
}

func (o *overAdopted) Walk(ctx context.Context, fn snapshots.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	return o.Snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info = o.hide(info); info.Name == o.base || !filter.Match(adaptor(info)) {
			return nil
		}
		return fn(ctx, info)
	})
}

// adaptor shows a snapshot to containerd's filters, as its own stores do.
func adaptor(info snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch path[0] {
		case "kind":
			return strings.ToLower(info.Kind.String()), true
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "labels":
			v, ok := info.Labels[strings.Join(path[1:], ".")]
			return v, ok
		}
		return "", false
	})
}
