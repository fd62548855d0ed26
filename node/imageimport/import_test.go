package imageimport_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/snapshotter"
)

const (
	app  = "docker.io/library/app:1"
	tool = "registry.example.com/team/tool:2"
)

// twoImages share their lowest layer.
func twoImages() []layerdisktest.Image {
	return []layerdisktest.Image{
		{Reference: app, Layers: []string{"base", "app"}, WithIndex: true},
		{Reference: tool, Layers: []string{"base", "tool"}},
	}
}

// wanted is what a disk of twoImages is to leave in containerd.
func wanted(ix *layerdisk.Index, namespace string) []string {
	list := []string{"lease berth-imported-" + ix.UUID}
	for _, img := range ix.Images {
		target := img.Manifest
		if img.IndexDescriptor != nil {
			target = *img.IndexDescriptor
			list = append(list, "content "+target.Digest.String())
		}
		list = append(list, "image "+img.Reference, "content "+img.Manifest.Digest.String(), "content "+img.Config.Digest.String())
		if namespace == "k8s.io" {
			list = append(list, "image "+img.Reference[:len(img.Reference)-2]+"@"+target.Digest.String(), "image "+img.Config.Digest.String())
		}
	}
	for _, c := range ix.Chains {
		list = append(list, "snapshot "+c.ChainID.String())
	}
	slices.Sort(list)
	return list
}

// Everything that containerd and CRI look for is there, garbage collection keeps it, and it goes with the disk. The
// protocol in which snapshots are made does not matter.
func TestRegister(t *testing.T) {
	for _, protocol := range []snapshotter.Protocol{snapshotter.ProtocolAuto, snapshotter.ProtocolEarlyMounts} {
		t.Run(protocol.String(), func(t *testing.T) {
			n := newNode(t, protocol)
			n.config.Pinned = true
			ix := n.attach("d", twoImages()...)
			im := n.importer()
			im.Converge(t.Context())
			n.collect()
			for _, ns := range n.config.Namespaces {
				require.Equal(t, wanted(ix, ns), n.has(ns), ns)
				img, err := n.image(ns, app)
				require.NoError(t, err)
				require.Equal(t, ix.Images[0].IndexDescriptor.Digest, img.Target.Digest)
				managed, pinned := "", ""
				if ns == "k8s.io" {
					managed, pinned = "managed", "pinned"
				}
				require.Equal(t, managed, img.Labels["io.cri-containerd.image"])
				require.Equal(t, pinned, img.Labels["io.cri-containerd.pinned"])
			}
			require.Equal(t, map[string]imageimport.Result{
				"default " + app: imageimport.Registered, "default " + tool: imageimport.Registered,
				"k8s.io " + app: imageimport.Registered, "k8s.io " + tool: imageimport.Registered,
			}, results(im, "d", ix.UUID))
			require.Len(t, n.told, 4)

			im.Converge(t.Context())
			n.importer().Converge(t.Context()) // another berthd
			require.Len(t, n.told, 4, "nothing is done or told again: %v", n.told)
			n.detach("d")
			im.Converge(t.Context())
			n.requireNothing()
			require.Len(t, n.told, 8)
			require.NoFileExists(t, n.config.Marker, "nothing is left, so containerd is not asked any more")
		})
	}
}

// errCrash stops everything between two steps.
var errCrash = errors.New("crash")

// crashing converges until a step, as if the process had been killed there, and says whether it came that far.
func crashing(t *testing.T, n *node, step int) (crashed bool) {
	im := n.importer()
	im.CrashAt(func(string) {
		if step--; step == 0 {
			panic(errCrash)
		}
	})
	defer func() {
		if r := recover(); r != nil {
			if err, ok := r.(error); !ok || !errors.Is(err, errCrash) {
				panic(r)
			}
			crashed = true
		}
	}()
	im.Converge(t.Context())
	return false
}

// Killed at any step of registering, with a garbage collection and perhaps without the disk afterwards, the next berthd
// makes it right.
func TestCrashWhileRegistering(t *testing.T) {
	for step := 1; ; step++ {
		n := newNode(t, snapshotter.ProtocolAuto)
		ix := n.attach("d", twoImages()...)
		if !crashing(t, n, step) {
			require.Greater(t, step, 20, "too few steps seen")
			return
		}
		if step%2 == 0 {
			n.collect()
		}
		if step%3 == 0 {
			n.detach("d")
			n.importer().Converge(t.Context())
			n.requireNothing()
			n.attachIndex("d", ix)
		}
		n.importer().Converge(t.Context())
		n.collect()
		for _, ns := range n.config.Namespaces {
			require.Equal(t, wanted(ix, ns), n.has(ns), "step %d, namespace %s", step, ns)
		}
	}
}

// Killed at any step of taking back, the next berthd takes all of it back, or registers all of it if the disk is still
// there.
func TestCrashWhileWithdrawing(t *testing.T) {
	for step := 1; ; step++ {
		n := newNode(t, snapshotter.ProtocolAuto)
		ix := n.attach("d", twoImages()...)
		n.importer().Converge(t.Context())
		n.phase("d", imageimport.Leaving)
		if !crashing(t, n, step) {
			require.Greater(t, step, 10, "too few steps seen")
			return
		}
		if step%2 == 0 {
			n.phase("d", imageimport.Serving)
			n.importer().Converge(t.Context())
			n.collect()
			for _, ns := range n.config.Namespaces {
				require.Equal(t, wanted(ix, ns), n.has(ns), "step %d, namespace %s", step, ns)
			}
		}
		n.detach("d")
		n.importer().Converge(t.Context())
		n.requireNothing()
	}
}

// What others have made of a record is theirs: a copy under another name, another target, labels written anew. What is
// ours in it does not keep the disk.
func TestWithdrawLeavesOthers(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	ix := n.attach("d", twoImages()...)
	im := n.importer()
	im.Converge(t.Context())
	ctx, store := in(t, "default"), metadata.NewImageStore(n.db)
	// CRI of containerd 1.7 gives a name another target and keeps the labels.
	moved := images.Image{Name: app, Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("other"), Size: 5}}
	_, err := store.Update(ctx, moved, "target")
	require.NoError(t, err)
	im.Converge(t.Context())
	require.Equal(t, imageimport.Removed, results(im, "d", ix.UUID)["default "+app])

	n.detach("d")
	im.Converge(t.Context())
	n.collect()
	require.Equal(t, []string{"image " + app}, n.has("default"))
	now, err := n.image("default", app)
	require.NoError(t, err)
	require.Equal(t, moved.Target.Digest, now.Target.Digest)
	for label := range now.Labels {
		require.NotContains(t, label, "berth", "labels of ours")
	}
	require.Empty(t, n.holders)
	require.NoError(t, store.Delete(ctx, app))

	// "ctr images tag" copies all labels to a new name.
	n.attachIndex("d", ix)
	im.Converge(t.Context())
	img, err := n.image("default", app)
	require.NoError(t, err)
	img.Name = "docker.io/library/copy:1"
	_, err = store.Create(ctx, img)
	require.NoError(t, err)
	release, err := im.Withdraw(t.Context(), "d")
	require.NoError(t, err)
	require.Contains(t, n.has("default"), "image "+app, "the copy uses the disk, so nothing is taken back")
	release()
	require.ErrorIs(t, n.Detach(t.Context(), "d"), errdefs.ErrFailedPrecondition)
	require.NoError(t, store.Delete(ctx, img.Name))
	release, err = im.Withdraw(t.Context(), "d")
	require.NoError(t, err)
	require.NoError(t, n.Detach(t.Context(), "d"))
	release()
	n.requireNothing()
}

// While a disk is withheld nothing is registered from it or from others, whose layers it may have; afterwards it is.
func TestWithhold(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	ix := n.attach("d", twoImages()...)
	im := n.importer()
	im.Converge(t.Context())
	release, err := im.Withdraw(t.Context(), "d")
	require.NoError(t, err)
	im.Converge(t.Context())
	for _, ns := range n.config.Namespaces {
		require.Empty(t, n.has(ns), ns)
	}
	release()
	im.Converge(t.Context())
	require.Equal(t, wanted(ix, "k8s.io"), n.has("k8s.io"))
}

// A container's snapshot keeps the images of its disk, and of the disk below.
func TestUsedBySnapshot(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	n.attach("below", layerdisktest.Image{Reference: tool, Layers: []string{"base"}})
	above := n.attach("above", layerdisktest.Image{Reference: app, Layers: []string{"base", "app"}})
	im := n.importer()
	im.Converge(t.Context())
	ctx, snaps := in(t, "k8s.io"), n.db.Snapshotter(pluginName)
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "now"})
	_, err := snaps.Prepare(ctx, "container", above.Images[0].ChainID.String(), root)
	require.NoError(t, err)
	before := n.has("k8s.io")
	for _, disk := range []string{"below", "above"} {
		release, err := im.Withdraw(t.Context(), disk)
		require.NoError(t, err)
		require.Equal(t, before, n.has("k8s.io"), disk)
		release()
	}
	require.NoError(t, snaps.Remove(ctx, "container"))
	n.collect()
	release, err := im.Withdraw(t.Context(), "below")
	require.NoError(t, err)
	require.NoError(t, n.Detach(t.Context(), "below"))
	release()
	im.Converge(t.Context())
	require.Equal(t, wanted(above, "k8s.io"), n.has("k8s.io"), "the image goes over to its own disk")
}

// A containerd that does not answer loses nothing, and the reason is told.
func TestContainerdAway(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	ix := n.attach("d", twoImages()...)
	im := n.importer()
	n.down = fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)
	im.Converge(t.Context())
	_, err := im.Status("d", ix.UUID)
	require.ErrorContains(t, err, "connection refused")
	n.down = nil
	im.Converge(t.Context())
	_, err = im.Status("d", ix.UUID)
	require.NoError(t, err)
	n.down = fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)
	_, err = im.Withdraw(t.Context(), "d")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "start it first")
	n.detach("d")
	im.Converge(t.Context())
	n.down = nil
	n.importer().Converge(t.Context())
	n.requireNothing()
}

// Disks on their way keep what was registered, a namespace that is not configured any more does not, nor a disk that is
// not wanted.
func TestStays(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	ix := n.attach("d", twoImages()...)
	n.importer().Converge(t.Context())
	n.phase("d", imageimport.Coming)
	n.config.Namespaces = []string{"k8s.io"}
	n.importer().Converge(t.Context())
	require.Equal(t, wanted(ix, "k8s.io"), n.has("k8s.io"))
	require.Empty(t, n.has("default"))
	n.phase("d", imageimport.Serving)
	im := n.importer()
	im.Want(func(string) bool { return false })
	im.Converge(t.Context())
	n.requireNothing()
}

// Content that others have is given what it lacks and otherwise left, and it stays when the disk goes.
func TestSharedContent(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, twoImages()...)
	_, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	ctx := in(t, "default")
	manager := metadata.NewLeaseManager(n.db)
	lease, err := manager.Create(ctx, leases.WithID("theirs"))
	require.NoError(t, err)
	n.attachIndex("d", ix)
	img := ix.Images[1]
	held := leases.WithLease(ctx, lease.ID)
	writeBlob(t, held, n, img.Config, img.RawConfig)
	writeBlob(t, held, n, img.Manifest, img.RawManifest)
	im := n.importer()
	im.Converge(t.Context())
	n.collect()
	require.ElementsMatch(t, append(wanted(ix, "default"), "lease theirs"), n.has("default"))
	n.detach("d")
	im.Converge(t.Context())
	n.collect()
	require.ElementsMatch(t, []string{"content " + img.Config.Digest.String(), "content " + img.Manifest.Digest.String(), "lease theirs"}, n.has("default"))
	require.Empty(t, n.holders, "a config of others does not keep the disk")
	info, err := n.db.ContentStore().Info(ctx, img.Config.Digest)
	require.NoError(t, err)
	require.Empty(t, info.Labels)
}

// A disk that only registered images use is free and goes when its time is over; one that is kept, or that a container
// uses, is not.
func TestIdle(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	n.config.IdleTimeout = 1
	ix := n.attach("d", twoImages()...)
	kept := n.attach("kept", layerdisktest.Image{Reference: "docker.io/library/kept:1", Layers: []string{"kept"}})
	n.disks[1].Keep = true
	im := n.importer()
	im.Converge(t.Context())
	require.Zero(t, im.FreeSince(ix.UUID))
	ctx, snaps := in(t, "k8s.io"), n.db.Snapshotter(pluginName)
	_, err := snaps.Prepare(ctx, "container", ix.Images[0].ChainID.String())
	require.NoError(t, err)
	for range 3 {
		im.Converge(t.Context())
		require.Zero(t, im.FreeSince(ix.UUID))
	}
	require.NoError(t, snaps.Remove(ctx, "container"))
	n.collect()
	im.Converge(t.Context())
	require.NotZero(t, im.FreeSince(ix.UUID))
	require.Len(t, n.Disks(), 2)
	im.Converge(t.Context())
	require.Len(t, n.Disks(), 1)
	im.Converge(t.Context())
	require.Equal(t, wanted(kept, "k8s.io"), n.has("k8s.io"))
}

// Garbage collection may run between any two steps: nothing is lost that is not referred to yet.
func TestCollectedBetweenSteps(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	ix := n.attach("d", twoImages()...)
	im := n.importer()
	im.CrashAt(func(string) { n.collect() })
	im.Converge(t.Context())
	for _, ns := range n.config.Namespaces {
		require.Equal(t, wanted(ix, ns), n.has(ns), ns)
	}
	n.detach("d")
	im.Converge(t.Context())
	n.requireNothing()
}
