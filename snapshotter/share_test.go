package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/snapshotter"
)

// TestTwoNamespaces: what one namespace adopted another shares, and it lives until both are done with it.
func TestTwoNamespaces(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	a, b := pulling{namespace: "a"}, pulling{namespace: "b"}
	n := newNode(t, snapshotter.Config{}, im.layers)
	require.Empty(t, n.mustPull(t, im, a))
	n.seen.take()
	require.Empty(t, n.mustPull(t, im, b))
	hits, misses := n.seen.take()
	require.Empty(t, misses)
	require.Len(t, hits, len(im.layers))
	for _, h := range hits {
		require.Equal(t, layerdisk.MatchSnapshot, h.MatchedBy)
		require.NotZero(t, h.BlobSize)
	}
	require.Len(t, n.source.holders(), len(im.layers), "one snapshot for both")

	n.removeImage(t, im, a)
	n.collect(t)
	require.Len(t, n.source.holders(), len(im.layers), "b still has it")
	n.requireTree(t, stockTree(t, im), im, b)
	for _, l := range im.layers {
		_, err := n.meta.Stat(a.context(t), l.chainID.String())
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
}

// TestReleasedByGarbageCollection: when nobody needs an image any more its layers are released.
func TestReleasedByGarbageCollection(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	for _, how := range []pulling{{}, {parallel: 4, rebase: true}} {
		n := newNode(t, snapshotter.Config{}, pick(im, 0, 1, 3, 4))
		n.mustPull(t, im, how)
		require.Len(t, n.source.holders(), 4)
		n.removeImage(t, im, how)
		n.collect(t)
		require.Empty(t, n.source.holders())
		entries, err := os.ReadDir(filepath.Join(n.root, "snapshots"))
		require.NoError(t, err)
		require.Empty(t, entries, "Cleanup is passed on")
		n.requireConsistent(t)
		require.NoError(t, fstest.CheckDirectoryEqual(n.source.disks[0].dir(0), newDisk(t, t.TempDir(), 9, im.layers[0]).dir(0)))
		n.mustPull(t, im, how)
	}
}

// removeImage takes away what keeps an image: its blobs, whose labels refer to the snapshots, and containers.
func (n *node) removeImage(t testing.TB, im *image, how pulling) {
	t.Helper()
	ctx := how.context(t)
	for d := range im.blobs {
		if err := n.cs.Delete(ctx, d); err != nil {
			require.ErrorIs(t, err, errdefs.ErrNotFound)
		}
	}
}

// TestOneLayerBelowTwoParents: a chain may lie on two backend snapshots, if one namespace unpacked the lower layer
// before the disk came and another adopted it. Names made of the chain ID alone would break the second pull.
func TestOneLayerBelowTwoParents(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, im.layers)
	all, want := n.source.disks[0].layers, stockTree(t, im)
	for i := 3; i >= 0; i-- {
		// Each namespace pulls when the disk has more than before, so that what lies below is another mix.
		ns := fmt.Sprint("with-", i)
		n.source.change(func(s *source) { s.disks[0].layers = append(make([]layer, i), all[i:]...) })
		fetched := n.mustPull(t, im, pulling{namespace: ns})
		if i == 0 {
			require.Empty(t, fetched)
		} else {
			require.Subset(t, fetched, digests(im.layers[:i]))
		}
		n.source.change(func(s *source) { s.disks[0].layers = all })
		n.requireTree(t, want, im, pulling{namespace: ns})
		n.requireConsistent(t)
	}
	// Those who come later find everything.
	require.Empty(t, n.mustPull(t, im, pulling{namespace: "later"}))
	n.requireTree(t, want, im, pulling{namespace: "later"})
}

// TestLocalLayersAreNotShared: a layer that another namespace unpacked is fetched again, as with the stock snapshotter.
func TestLocalLayersAreNotShared(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{})
	require.Len(t, n.mustPull(t, im, pulling{namespace: "a"}), len(im.layers))
	require.Len(t, n.mustPull(t, im, pulling{namespace: "b"}), len(im.layers))
	n.requireTree(t, stockTree(t, im), im, pulling{namespace: "b"})
}

// TestConcurrentPulls: many at once, of images that share layers, in several namespaces.
func TestConcurrentPulls(t *testing.T) {
	tars := sampleTars(t)
	images := []*image{
		forge(t, "one", nil, tars...),
		forge(t, "two", nil, append(tars[:3:3], tarOf(t, entry{name: "two", body: "2\n"}))...),
		forge(t, "three", nil, append(tars[:1:1], tarOf(t, entry{name: "three", body: "3\n"}))...),
	}
	var want []string
	for _, im := range images {
		want = append(want, stockTree(t, im))
	}
	for _, rebase := range []bool{false, true} {
		n := newNode(t, snapshotter.Config{}, images[0].layers, pick(images[1], 3))
		// A real source takes its time; let everybody ask before anybody gets an answer.
		const pulls = 4
		var waiting sync.WaitGroup
		waiting.Add(pulls)
		n.source.change(func(s *source) {
			s.acquire = func(want snapshotter.LayerRequest) error {
				if want.ChainID == images[0].layers[0].chainID {
					waiting.Done()
					waiting.Wait()
				}
				return nil
			}
		})
		var group errgroup.Group
		for i := range pulls {
			group.Go(func() error {
				_, err := n.pull(t, images[i%len(images)], pulling{namespace: fmt.Sprint("ns", i), parallel: 2, rebase: rebase})
				return err
			})
		}
		require.NoError(t, group.Wait())
		n.requireConsistent(t)
		for i := range pulls {
			n.requireTree(t, want[i%len(images)], images[i%len(images)], pulling{namespace: fmt.Sprint("ns", i)})
		}
		// However many asked at once, the lowest layer is one snapshot.
		adopted, err := n.berth.Adopted(t.Context())
		require.NoError(t, err)
		var lowest int
		for _, a := range adopted {
			if a.ChainID == images[0].layers[0].chainID {
				lowest++
			}
		}
		require.Equal(t, 1, lowest)
	}
}

// TestPullRacesRemoval: pulls and removals of the same image, with garbage collection all the time.
func TestPullRacesRemoval(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0, 1, 2, 3))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group errgroup.Group
	group.Go(func() error {
		for ctx.Err() == nil {
			if _, err := n.db.GarbageCollect(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
	var pulls errgroup.Group
	for i := range 3 {
		pulls.Go(func() error {
			how := pulling{namespace: fmt.Sprint("ns", i)}
			for range 8 {
				// Without a lease a collection may take a layer away between two steps of a pull, as from any
				// snapshotter; what must not happen is any other error.
				if _, err := n.pull(t, im, how); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsAlreadyExists(err) {
					return err
				}
				n.removeImage(t, im, how)
			}
			return nil
		})
	}
	require.NoError(t, pulls.Wait())
	cancel()
	require.NoError(t, group.Wait())
	n.collect(t)
	n.collect(t)
	require.Empty(t, n.source.holders())
	n.requireConsistent(t)
	n.mustPull(t, im, pulling{namespace: "last"})
	n.requireTree(t, stockTree(t, im), im, pulling{namespace: "last"})
}

// TestFaultySource: whatever the source does, pulls go on.
func TestFaultySource(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	want := stockTree(t, im)
	for name, fault := range map[string]error{
		"unavailable": errdefs.ErrUnavailable, "deadline": context.DeadlineExceeded, "already exists": errdefs.ErrAlreadyExists,
		"unknown": errors.New("broken"), "not found": errdefs.ErrNotFound,
	} {
		for _, how := range []pulling{{}, {parallel: 4, rebase: true}} {
			n := newNode(t, snapshotter.Config{}, im.layers)
			n.source.change(func(s *source) { s.acquire = func(snapshotter.LayerRequest) error { return fault } })
			require.Len(t, n.mustPull(t, im, how), len(im.layers), name)
			n.requireTree(t, want, im, how)
			_, misses := n.seen.take()
			require.Len(t, misses, len(im.layers))
			require.ErrorIs(t, misses[0].Err, fault)
		}
	}
	t.Run("a release that fails is tried again", func(t *testing.T) {
		n := newNode(t, snapshotter.Config{}, im.layers)
		n.mustPull(t, im, pulling{})
		n.source.change(func(s *source) { s.release = errdefs.ErrUnavailable })
		n.removeImage(t, im, pulling{})
		n.collect(t)
		require.Len(t, n.source.holders(), len(im.layers))
		n.source.change(func(s *source) { s.release = nil })
		require.NoError(t, n.berth.Cleanup(t.Context()))
		require.Empty(t, n.source.holders())
	})
	t.Run("a pull that is given up", func(t *testing.T) {
		n := newNode(t, snapshotter.Config{}, im.layers)
		ctx, cancel := context.WithCancel(t.Context())
		n.source.change(func(s *source) { s.acquire = func(snapshotter.LayerRequest) error { cancel(); return ctx.Err() } })
		_, err := n.berth.Prepare(ctx, "extract-1 "+im.layers[0].chainID.String(), "",
			snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": im.layers[0].chainID.String()}))
		require.ErrorIs(t, err, context.Canceled)
		require.Empty(t, n.source.holders())
	})
}

// TestMissingDisk: containers whose layers are all elsewhere, and pulls, do not notice; the others are told which disk.
func TestMissingDisk(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	small := forge(t, "small", nil, sampleTars(t)[:2]...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0, 1), pick(im, 2, 3, 4))
	a, b, want := pulling{namespace: "a"}, pulling{namespace: "b"}, stockTree(t, im)
	n.mustPull(t, im, a)
	n.mustPull(t, small, a)
	ctx := a.context(t)
	_, err := n.meta.Prepare(ctx, "container", im.top().String())
	require.NoError(t, err)
	gone := n.source.disks[1].uuid
	n.source.change(func(s *source) { s.missing[gone] = true })

	for _, do := range []func() error{
		func() error { _, err := n.meta.Mounts(ctx, "container"); return err },
		func() error { _, err := n.meta.Prepare(ctx, "another", im.top().String()); return err },
		func() error { _, err := n.meta.View(ctx, "view", im.top().String()); return err },
	} {
		err := do()
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, gone)
	}
	_, err = n.berth.Stat(ctx, "container")
	require.ErrorIs(t, err, errdefs.ErrNotFound, "that is the metadata store's name")
	n.requireTree(t, stockTree(t, small), small, a)

	// Another namespace pulls what it cannot share any more, and gets something whole.
	fetched := n.mustPull(t, im, b)
	require.Equal(t, digests(pick(im, 2, 3, 4)), fetched)
	n.requireTree(t, want, im, b)

	// The same layers from another disk are taken instead, although the broken snapshots are still there.
	n.source.change(func(s *source) { s.disks = append(s.disks, newDisk(t, n.root, 3, pick(im, 2, 3, 4)...)) })
	c := pulling{namespace: "c"}
	require.Empty(t, n.mustPull(t, im, c))
	n.requireTree(t, want, im, c)

	n.source.change(func(s *source) { s.missing = map[string]bool{} })
	mounts, err := n.meta.Mounts(ctx, "container")
	require.NoError(t, err)
	mountAt(t, mounts)
	require.NoError(t, n.meta.Remove(ctx, "container"))
}
