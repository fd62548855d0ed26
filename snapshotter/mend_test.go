package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// fromTars makes layers of an image anew as containerd's unpacker does.
type fromTars struct {
	im *image
	// before is called first, if it is not nil.
	before func(ctx context.Context, l snapshotter.LostLayer) error
}

func (f fromTars) MakeLayer(ctx context.Context, l snapshotter.LostLayer) error {
	if f.before != nil {
		if err := f.before(ctx, l); err != nil {
			return err
		}
	}
	i := slices.IndexFunc(f.im.layers, func(of layer) bool { return of.chainID == l.ChainID && of.diffID == l.DiffID })
	if i < 0 {
		return fmt.Errorf("layer %s: %w", l.DiffID, errdefs.ErrNotFound)
	}
	if len(l.Parents) != i {
		return fmt.Errorf("layer %d has %d parents", i, len(l.Parents))
	}
	var opts []archive.ApplyOpt
	if i > 0 {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(l.Parents))
	}
	_, err := archive.Apply(ctx, l.Dir, bytes.NewReader(f.im.layers[i].tar), opts...)
	return err
}

// lostNode has an image that was adopted from a disk which is lost.
func lostNode(t *testing.T, maker func(im *image) snapshotter.LayerMaker, wait time.Duration) (*node, *image) {
	t.Helper()
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{Maker: maker(im), MendWait: wait}, pick(im, 0, 1, 2, 3, 4))
	n.mustPull(t, im, pulling{})
	n.source.change(func(s *source) { s.missing[s.disks[0].uuid] = true })
	return n, im
}

func tars(im *image) snapshotter.LayerMaker { return fromTars{im: im} }

// TestMend: layers of a lost disk are made anew on this node's own disk when something needs them. From then on the
// snapshots are local, and what is held of the disk stays held until they go.
func TestMend(t *testing.T) {
	n, im := lostNode(t, tars, time.Minute)
	want, before := stockTree(t, im), n.source.holders()
	n.requireTree(t, want, im, pulling{})
	require.Equal(t, before, n.source.holders(), "containers that started before may run from the disk")
	more := forge(t, "more", nil, append(sampleTars(t), sampleTars(t)[0])...)
	require.Len(t, n.mustPull(t, more, pulling{}), 1, "a layer on top of mended ones")

	n.stop()
	n.stack = newStack(t, n.root, snapshotter.Config{Source: n.source, Observer: n.seen})
	n.source.reconcile(t, n.berth)
	require.Equal(t, before, n.source.holders())
	n.requireTree(t, want, im, pulling{})
	list, err := n.berth.Adopted(t.Context())
	require.NoError(t, err)
	require.Len(t, list, len(im.layers))
	ctx := context.WithoutCancel(t.Context())
	for i := len(list) - 1; i >= 0; i-- {
		require.True(t, list[i].Local)
	}
	require.NoError(t, n.berth.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		for name := range info.Labels {
			require.NotContains(t, name, "berth.dev", "our own labels are not shown")
		}
		return nil
	}))
	require.NoError(t, snapshotter.ForgetBoot(ctx, n.berth))
	list, err = n.berth.Adopted(ctx)
	require.NoError(t, err)
	require.Empty(t, list, "no container of an earlier boot runs")
	n.requireTree(t, want, im, pulling{})
	entries, err := os.ReadDir(filepath.Join(n.root, "mend"))
	require.True(t, os.IsNotExist(err) || len(entries) == 0, "%v %v", entries, err)
}

// TestMendGivesAllBack: removing mended snapshots releases the disk.
func TestMendGivesAllBack(t *testing.T) {
	n, im := lostNode(t, tars, time.Minute)
	ctx := context.WithoutCancel(t.Context())
	top := n.adoptedName(t, im.top())
	names := make([]string, len(im.layers))
	for i, l := range im.layers {
		names[i] = n.adoptedName(t, l.chainID)
	}
	_, err := n.berth.View(ctx, "default/99/view", top)
	require.NoError(t, err)
	require.NoError(t, n.berth.Remove(ctx, "default/99/view"))
	for _, name := range slices.Backward(names) {
		require.NoError(t, n.berth.Remove(ctx, name))
	}
	require.Empty(t, n.source.holders())
	require.NoError(t, n.berth.Cleanup(ctx))
	entries, err := os.ReadDir(filepath.Join(n.root, "snapshots"))
	require.NoError(t, err)
	require.Empty(t, entries)
}

// TestMendWaitsBounded: a request waits no longer than configured, what it waited for goes on, and the next one finds
// it done. Several requests have a layer made once.
func TestMendWaitsBounded(t *testing.T) {
	hold, begun := make(chan struct{}), make(chan struct{}, 100)
	n, im := lostNode(t, func(im *image) snapshotter.LayerMaker {
		return fromTars{im, func(ctx context.Context, _ snapshotter.LostLayer) error {
			begun <- struct{}{}
			select {
			case <-hold:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
	}, 10*time.Millisecond)
	ctx := pulling{}.context(t)
	for range 3 {
		_, err := n.meta.View(ctx, "view", im.top().String())
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "being made anew")
	}
	close(hold)
	require.Eventually(t, func() bool {
		_, err := n.meta.View(ctx, "view", im.top().String())
		return err == nil
	}, 10*time.Second, 5*time.Millisecond)
	require.Len(t, begun, len(im.layers))
	n.requireTree(t, stockTree(t, im), im, pulling{})
}

// TestMendFails: what cannot be made leaves the snapshot as it was, says why, and is tried again.
func TestMendFails(t *testing.T) {
	fail := errors.New("registry is down")
	n, im := lostNode(t, func(im *image) snapshotter.LayerMaker {
		return fromTars{im, func(_ context.Context, l snapshotter.LostLayer) error {
			if l.ChainID != im.layers[2].chainID {
				return nil
			}
			if err := os.WriteFile(filepath.Join(l.Dir, "half"), nil, 0o600); err != nil {
				return err
			}
			return fail
		}}
	}, time.Minute)
	ctx := pulling{}.context(t)
	for range 2 {
		_, err := n.meta.View(ctx, "view", im.top().String())
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "registry is down")
		require.ErrorContains(t, err, n.source.disks[0].uuid)
	}
	list, err := n.berth.Adopted(t.Context())
	require.NoError(t, err)
	local, mends := map[bool]int{}, map[string]snapshotter.Mend{}
	for _, a := range list {
		local[a.Local]++
		if a.Mend != (snapshotter.Mend{}) {
			mends[a.Name] = a.Mend
		}
	}
	require.Equal(t, map[bool]int{true: 2, false: 3}, local, "what lies below was made")
	require.Len(t, mends, 1)
	name := n.adoptedName(t, im.layers[2].chainID)
	require.False(t, mends[name].Running)
	require.ErrorIs(t, mends[name].Err, fail)
}

// TestCrashWhileMending: whatever step a crash follows, the next process serves the layer.
func TestCrashWhileMending(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0))
	name := adopt(t.Context(), t, n.berth, "default/1/extract-1 ", "", im.layers[0])
	n.stop()
	n.source.change(func(s *source) { s.missing[s.disks[0].uuid] = true })
	var states []state
	cfg := snapshotter.Config{Root: n.root, Source: n.source, Maker: tars(im), MendWait: time.Minute}
	s, err := snapshotter.Open(t.Context(), snapshotter.WithStep(cfg, func(step string) { states = append(states, copyState(t, n, step)) }))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	_, err = s.View(t.Context(), "default/2/view", name)
	require.NoError(t, err)
	require.Len(t, states, 3)
	for i, want := range []string{"made anew", "in place", "mended"} {
		at := states[i]
		require.Equal(t, want, at.step)
		src := newSource(n.source.disks...)
		src.missing[n.source.disks[0].uuid] = true
		again, err := snapshotter.Open(t.Context(), snapshotter.Config{Root: at.root, Source: src, Maker: tars(im), MendWait: time.Minute})
		require.NoError(t, err)
		src.reconcile(t, again)
		require.Len(t, src.holders(), 1)
		mounts, err := again.View(t.Context(), "default/2/view", name)
		require.NoError(t, err)
		require.Equal(t, filepath.Join(at.root, "snapshots"), filepath.Dir(filepath.Dir(mounts[0].Source)))
		got, err := os.ReadFile(filepath.Join(mounts[0].Source, "etc", "passwd"))
		require.NoError(t, err)
		require.NotEmpty(t, got)
		require.Len(t, src.holders(), 1)
		require.NoError(t, again.Close())
	}
}
