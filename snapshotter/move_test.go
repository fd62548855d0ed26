package snapshotter_test

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// moved is a node where an image was adopted from disk 0, which is lost, while disk 1 has the same layers in another
// order.
func movable(t *testing.T) (n *node, im *image, lost string) {
	t.Helper()
	im = forge(t, "sample", nil, sampleTars(t)...)
	n = newNode(t, snapshotter.Config{}, pick(im, 0, 1, 2, 3, 4), pick(im, 4, 3, 2, 1, 0))
	lost = n.source.disks[0].uuid
	n.source.change(func(s *source) { s.missing[s.disks[1].uuid] = true })
	n.mustPull(t, im, pulling{})
	n.source.change(func(s *source) { s.missing = map[string]bool{lost: true} })
	return n, im, lost
}

// TestMove: what was adopted from a lost disk is served by another one that has the same chains, also after a restart,
// and both are held until the snapshots go.
func TestMove(t *testing.T) {
	n, im, lost := movable(t)
	other := n.source.disks[1].uuid
	want := stockTree(t, im)
	n.requireTree(t, want, im, pulling{})
	require.Empty(t, n.mustPull(t, im, pulling{namespace: "another"}), "a lost disk must not cost a pull")
	held := map[string]int{}
	for _, uuid := range n.source.holders() {
		held[uuid]++
	}
	require.Equal(t, map[string]int{lost: 5, other: 5}, held, "containers that started before still use the lost disk")

	n.stop()
	n.stack = newStack(t, n.root, snapshotter.Config{Source: n.source, Observer: n.seen})
	before := n.source.holders()
	n.source.reconcile(t, n.berth)
	require.Equal(t, before, n.source.holders())
	n.requireTree(t, want, im, pulling{})
	require.Equal(t, before, n.source.holders(), "nothing moves twice")

	uses, err := n.berth.Uses(t.Context())
	require.NoError(t, err)
	require.Len(t, uses[other].Chains, 5)

	// The lost one comes back and serves again when the other goes.
	n.source.change(func(s *source) { s.missing = map[string]bool{other: true} })
	n.requireTree(t, want, im, pulling{})
	require.Equal(t, before, n.source.holders())
}

// TestMoveGivesAllBack: removing snapshots that were served from two disks releases both.
func TestMoveGivesAllBack(t *testing.T) {
	n, im, _ := movable(t)
	ctx := context.WithoutCancel(t.Context())
	_, err := n.berth.View(ctx, "default/99/view", n.adoptedName(t, im.top()))
	require.NoError(t, err)
	require.Len(t, n.source.holders(), 10)
	require.NoError(t, n.berth.Remove(ctx, "default/99/view"))
	for i := len(im.layers) - 1; i >= 0; i-- {
		require.NoError(t, n.berth.Remove(ctx, n.adoptedName(t, im.layers[i].chainID)))
	}
	require.Empty(t, n.source.holders())
}

// adoptedName is the name of the one adopted snapshot of a chain.
func (n *node) adoptedName(t *testing.T, chain digest.Digest) string {
	t.Helper()
	list, err := n.berth.Adopted(t.Context())
	require.NoError(t, err)
	name := ""
	for _, a := range list {
		if a.ChainID == chain {
			require.True(t, name == "" || name == a.Name, "one snapshot for a chain")
			name = a.Name
		}
	}
	require.NotEmpty(t, name)
	return name
}

// TestMoveBelievesNoDisk: a source that offers another layer for the chain is refused, and nothing is held for it.
func TestMoveBelievesNoDisk(t *testing.T) {
	n, im, lost := movable(t)
	before := n.source.holders()
	n.source.change(func(s *source) {
		s.lie = func(h *snapshotter.HeldLayer) { h.DiffID = digest.FromString("other bytes") }
	})
	_, err := n.meta.View(pulling{}.context(t), "view", im.top().String())
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, lost)
	require.Equal(t, before, n.source.holders())
}

// TestCrashWhileMoving: whatever step a crash follows, the next process holds what its snapshots use and serves them.
func TestCrashWhileMoving(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0), pick(im, 0))
	lost, other := n.source.disks[0].uuid, n.source.disks[1].uuid
	n.source.change(func(s *source) { s.missing[other] = true })
	name := adopt(t.Context(), t, n.berth, "default/1/extract-1 ", "", im.layers[0])
	n.stop()
	n.source.change(func(s *source) { s.missing = map[string]bool{lost: true} })
	var states []state
	s, err := snapshotter.Open(t.Context(), snapshotter.WithStep(snapshotter.Config{Root: n.root, Source: n.source}, func(step string) {
		states = append(states, copyState(t, n, step))
	}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	_, err = s.View(t.Context(), "default/2/view", name)
	require.NoError(t, err)
	require.Len(t, states, 2)
	for i, want := range []string{"found elsewhere", "moved"} {
		at := states[i]
		require.Equal(t, want, at.step)
		src := newSource(n.source.disks...)
		src.missing = map[string]bool{lost: true}
		again, err := snapshotter.Open(t.Context(), snapshotter.Config{Root: at.root, Source: src})
		require.NoError(t, err)
		adopted, err := again.Adopted(t.Context())
		require.NoError(t, err)
		for _, a := range adopted {
			require.Contains(t, at.holds, a.Holder, "what is written down was held before")
		}
		src.reconcile(t, again)
		mounts, err := again.View(t.Context(), "default/2/view", name)
		require.NoError(t, err)
		require.Equal(t, n.source.disks[1].dir(0), mounts[0].Source)
		require.Len(t, src.holders(), 2)
		require.NoError(t, again.Close())
	}
}
