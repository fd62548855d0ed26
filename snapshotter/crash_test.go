package snapshotter_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// state is what survives a crash at one step: the snapshotter's files and the source's journal of holds.
type state struct {
	step  string
	root  string
	holds map[string]string
}

// copyState keeps what a crash at this step would leave.
func copyState(t *testing.T, n *node, step string) state {
	t.Helper()
	at := state{step: step, root: filepath.Join(t.TempDir(), "root"), holds: n.source.holders()}
	out, err := exec.Command("cp", "-a", n.root, at.root).CombinedOutput()
	require.NoError(t, err, string(out))
	return at
}

func labelsFor(l layer) snapshots.Opt {
	labels := map[string]string{
		"containerd.io/snapshot.ref": l.chainID.String(), "containerd.io/snapshot/diff-id": l.diffID.String(),
	}
	if l.below != "" {
		labels["containerd.io/snapshot/parent-chain-id"] = l.below.String()
	}
	return snapshots.WithLabels(labels)
}

// life goes through all that can happen to snapshots: layers 0 and 1 are adopted, 2 gets early mounts and is committed
// on top of them, 3 is unpacked, a container runs, and all goes away again. keys begins the keys, so that it can be
// lived twice.
func life(t *testing.T, s *snapshotter.Snapshotter, im *image, keys string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	key := func(l layer) string { return keys + "/extract-1 " + l.chainID.String() }
	parent := ""
	for _, l := range im.layers[:2] {
		parent = adopt(ctx, t, s, keys+"/extract-1 ", parent, l)
	}
	early := im.layers[2]
	mounts, err := s.Prepare(ctx, key(early), "", labelsFor(early))
	require.NoError(t, err)
	require.True(t, mounts[0].ReadOnly())
	require.NoError(t, s.Commit(ctx, keys+"/early", key(early), labelsFor(early), snapshots.WithParent(parent)))
	local := im.layers[3]
	mounts, err = s.Prepare(ctx, key(local), keys+"/early", labelsFor(local))
	require.NoError(t, err)
	_, err = archive.Apply(ctx, option(t, mounts[0], "upperdir="), bytes.NewReader(local.tar), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, keys+"/local", key(local), labelsFor(local)))
	_, err = s.Prepare(ctx, keys+"/container", keys+"/local")
	require.NoError(t, err)
	mounts, err = s.Mounts(ctx, keys+"/container")
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(root string) error {
		for name, want := range map[string]string{"etc/passwd": "root\nuser\n", "opaque/new": "new\n", "hard2": "hard\n"} {
			got, err := os.ReadFile(filepath.Join(root, name))
			require.NoError(t, err)
			require.Equal(t, want, string(got))
		}
		return nil
	}))
	for _, name := range []string{"/container", "/local", "/early"} {
		require.NoError(t, s.Remove(ctx, keys+name))
	}
	for _, name := range walk(t, s, `name~="/layer/"`) {
		// The upper one has to go first, and whether another life shares them matters not.
		defer func() { _ = s.Remove(ctx, name) }()
	}
	require.NoError(t, s.Cleanup(ctx))
}

// TestCrash stops at every step that a crash may follow and goes on from what is on disk there.
func TestCrash(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := &node{root: filepath.Join(t.TempDir(), "root"), source: newSource()}
	n.source.disks = []*disk{newDisk(t, t.TempDir(), 1, pick(im, 0, 1, 2)...)}
	var states []state
	step := func(name string) {
		states = append(states, copyState(t, n, fmt.Sprintf("%02d %s", len(states), name)))
	}
	s, err := snapshotter.Open(t.Context(), snapshotter.WithStep(snapshotter.Config{Root: n.root, Source: n.source}, step))
	require.NoError(t, err)
	step("opened")
	life(t, s, im, "default/1")
	step("ended")
	require.NoError(t, s.Close())
	require.Empty(t, n.source.holders())
	var names []string
	for _, at := range states {
		names = append(names, at.step[3:])
	}
	for _, name := range []string{"acquired", "adopting", "adopted", "mounted early", "committing early", "committed early", "removed"} {
		require.Contains(t, names, name)
	}
	for _, at := range states {
		t.Run(at.step, func(t *testing.T) { goOn(t, n.source.disks[0], im, at) })
	}
}

// goOn opens what a crash left, as the daemon does, and requires that all is well.
func goOn(t *testing.T, d *disk, im *image, at state) {
	src := newSource(d)
	src.holds = maps.Clone(at.holds)
	s, err := snapshotter.Open(t.Context(), snapshotter.Config{Root: at.root, Source: src})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })

	adopted, err := s.Adopted(t.Context())
	require.NoError(t, err)
	for _, a := range adopted {
		require.Contains(t, at.holds, a.Holder, "what is adopted was held before")
	}
	src.reconcile(t, s)
	ctx := context.WithoutCancel(t.Context())
	// What was committed has its content.
	for i, name := range committed(t, s) {
		_, err := s.Prepare(ctx, fmt.Sprint("probe-", i), name)
		require.NoError(t, err)
		mounts, err := s.Mounts(ctx, fmt.Sprint("probe-", i))
		require.NoError(t, err)
		require.NoError(t, mount.WithTempMount(ctx, mounts, func(root string) error {
			_, err := os.Stat(filepath.Join(root, "etc/passwd"))
			require.NoError(t, err)
			return nil
		}))
		require.NoError(t, s.Remove(ctx, fmt.Sprint("probe-", i)))
	}
	// The same can be done again, beside what is there.
	life(t, s, im, "default/2")
	// And all can go: containerd's collection removes what its own metadata does not know.
	for range 10 {
		for _, name := range walk(t, s) {
			_ = s.Remove(ctx, name)
		}
	}
	require.Empty(t, walk(t, s))
	require.NoError(t, s.Cleanup(ctx))
	entries, err := os.ReadDir(filepath.Join(at.root, "snapshots"))
	require.NoError(t, err)
	require.Empty(t, entries)
	require.Empty(t, src.holders())
	_, err = os.Stat(d.dir(2))
	require.NoError(t, err)
}

func committed(t *testing.T, s snapshots.Snapshotter) []string {
	t.Helper()
	return walk(t, s, "kind==committed")
}

// TestLeftovers: directories that a crash or a power cut left too many or too few.
func TestLeftovers(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, im.layers)
	n.mustPull(t, im, pulling{})
	ctx := pulling{}.context(t)
	_, err := n.meta.Prepare(ctx, "container", im.top().String())
	require.NoError(t, err)
	n.stop()

	dir := filepath.Join(n.root, "snapshots")
	adoptedDirs, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Len(t, adoptedDirs, 2, "the container's, and the form of its parent")
	slices.Sort(adoptedDirs)
	require.NoError(t, os.RemoveAll(adoptedDirs[0]), "a directory that did not reach the disk")
	for id := 7; id < 12; id++ {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, fmt.Sprint(id), "fs", "junk"), 0o700))
	}
	n.stack = newStack(t, n.root, snapshotter.Config{Source: n.source, Observer: n.seen})
	n.requireTree(t, stockTree(t, im), im, pulling{})
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "stale-") }))
	require.NoError(t, n.berth.Cleanup(ctx))
	left, err := filepath.Glob(filepath.Join(dir, "stale-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestRestart: nothing is asked of the source at start, and containers go on being mounted afterwards, also if a disk
// is mounted elsewhere now.
func TestRestart(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, im.layers)
	n.mustPull(t, im, pulling{})
	ctx := pulling{}.context(t)
	_, err := n.meta.Prepare(ctx, "container", im.top().String())
	require.NoError(t, err)
	n.stop()

	n.source.requests, n.source.log = nil, nil
	moved := newDisk(t, n.root, 2, im.layers...)
	again := *moved
	again.uuid = n.source.disks[0].uuid
	n.source.disks = []*disk{&again}
	n.stack = newStack(t, n.root, snapshotter.Config{Source: n.source, Observer: n.seen})
	require.Empty(t, n.source.requests)
	mounts, err := n.meta.Mounts(ctx, "container")
	require.NoError(t, err)
	for _, lower := range strings.Split(option(t, mounts[0], "lowerdir="), ":") {
		require.True(t, strings.HasPrefix(lower, moved.mount), lower)
	}
	mountAt(t, mounts)
	require.Empty(t, n.source.requests, "a restart needs no lookup")
	n.requireConsistent(t)
	require.Empty(t, n.mustPull(t, im, pulling{namespace: "later"}))
}

func TestOpenRefuses(t *testing.T) {
	for name, cfg := range map[string]snapshotter.Config{
		"no root":       {Source: newSource()},
		"relative root": {Root: "var/lib", Source: newSource()},
		"unclean root":  {Root: "/var/../lib", Source: newSource()},
		"comma in root": {Root: "/var/lib/a,b", Source: newSource()},
		"no source":     {Root: t.TempDir()},
		"protocol":      {Root: t.TempDir(), Source: newSource(), Protocol: 9},
	} {
		_, err := snapshotter.Open(t.Context(), cfg)
		require.Error(t, err, name)
	}
	for _, p := range []snapshotter.Protocol{snapshotter.ProtocolAuto, snapshotter.ProtocolSequential, snapshotter.ProtocolEarlyMounts} {
		got, err := snapshotter.ParseProtocol(p.String())
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
	_, err := snapshotter.ParseProtocol("fast")
	require.ErrorContains(t, err, "auto, sequential or early-mounts")
}
