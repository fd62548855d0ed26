package snapshotter_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// TestManyLayers mounts 127 layers spread over three disks and the local one, in the right order.
func TestManyLayers(t *testing.T) {
	const count = 127
	var tars [][]byte
	for i := range count {
		tars = append(tars, tarOf(t, entry{name: "top", body: fmt.Sprint(i)}, entry{name: fmt.Sprint("only-", i), body: fmt.Sprint(i)}))
	}
	im := forge(t, "tall", nil, tars...)
	// The lowest layer and every fourth is local; a short path is what a real node has.
	dir, err := os.MkdirTemp("/var/tmp", "berth-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	var disks [3][]layer
	for i, l := range im.layers {
		if i%4 != 0 {
			disks[i%4-1] = append(disks[i%4-1], l)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := &node{root: filepath.Join(dir, "root"), source: newSource(), seen: &watcher{}}
	for i, layers := range disks {
		n.source.disks = append(n.source.disks, newDisk(t, n.root, i+1, layers...))
	}
	n.stack = newStack(t, n.root, snapshotter.Config{Source: n.source, Observer: n.seen})
	t.Cleanup(n.stop)
	for _, how := range []pulling{{}, {namespace: "parallel", parallel: 4, rebase: true}} {
		n.mustPull(t, im, how)
		root := n.mounted(t, im, how)
		top, err := os.ReadFile(filepath.Join(root, "top"))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(count-1), string(top))
		entries, err := os.ReadDir(root)
		require.NoError(t, err)
		require.Len(t, entries, count+1)
		hits, misses := n.seen.take()
		require.Len(t, hits, len(disks[0])+len(disks[1])+len(disks[2]))
		require.Len(t, misses, count-len(hits))
	}
}

// TestViews: all kinds of views over adopted and local layers; a view of one layer is a read-only bind mount.
func TestViews(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0, 2))
	n.mustPull(t, im, pulling{})
	ctx := pulling{}.context(t)
	for i, l := range im.layers {
		mounts, err := n.meta.View(ctx, fmt.Sprint("view-", i), l.chainID.String())
		require.NoError(t, err)
		require.Len(t, mounts, 1)
		if i == 0 {
			require.Equal(t, mount.Mount{Type: "bind", Source: n.source.disks[0].dir(0), Options: []string{"ro", "rbind"}}, mounts[0])
		} else {
			lower := option(t, mounts[0], "lowerdir=")
			require.Len(t, strings.Split(lower, ":"), i+1)
			require.Equal(t, n.source.disks[0].dir(0), strings.Split(lower, ":")[i], "the lowest is the last")
		}
		dir := mountAt(t, mounts)
		require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600), syscall.EROFS)
		again, err := n.meta.Mounts(ctx, fmt.Sprint("view-", i))
		require.NoError(t, err)
		require.Equal(t, mounts, again)
	}
}

func option(t testing.TB, m mount.Mount, prefix string) string {
	t.Helper()
	i := slices.IndexFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, prefix) })
	require.GreaterOrEqual(t, i, 0, "%v has %s", m, prefix)
	return strings.TrimPrefix(m.Options[i], prefix)
}

// TestUserNamespace mounts for a pod with its own user namespace: files of the image belong to the mapped users, though
// nothing was copied and the disk is read-only.
func TestUserNamespace(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0, 1, 3))
	if ok, err := overlayutils.SupportsIDMappedMounts(); err != nil || !ok {
		t.Skipf("kernel has no id-mapped overlay lower directories: %v", err)
	}
	n.mustPull(t, im, pulling{})
	ctx := pulling{}.context(t)
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:200000:150000", snapshots.LabelSnapshotGIDMapping: "0:300000:150000",
	})
	for i, top := range []int{0, 1, 2, 4} {
		mounts, err := n.meta.Prepare(ctx, fmt.Sprint("container-", i), im.layers[top].chainID.String(), labels)
		require.NoError(t, err)
		require.Equal(t, "0:200000:150000", option(t, mounts[0], "uidmap="))
		require.Equal(t, "0:300000:150000", option(t, mounts[0], "gidmap="))
		for _, dir := range strings.Split(option(t, mounts[0], "lowerdir="), ":") {
			real, err := filepath.EvalSymlinks(dir)
			require.NoError(t, err)
			require.Equal(t, dir, real)
			require.True(t, strings.HasPrefix(dir, n.root+"/"))
		}
		root := mountAt(t, mounts)
		for name, uid := range map[string]uint32{"etc/passwd": 0, "owned": 100001, "": 0} {
			info, err := os.Lstat(filepath.Join(root, name))
			require.NoError(t, err)
			st, ok := info.Sys().(*syscall.Stat_t)
			require.True(t, ok)
			require.Equal(t, 200000+uid, st.Uid, name)
			require.Equal(t, 300000+uid, st.Gid, name)
		}
		require.NoError(t, os.WriteFile(filepath.Join(root, "etc/new"), []byte("new"), 0o600))
		view, err := n.meta.View(ctx, fmt.Sprint("view-", i), im.layers[top].chainID.String(), labels)
		require.NoError(t, err)
		mountAt(t, view)
	}
}

// TestCopyForUserNamespace does what containerd does for a snapshotter without the capability remap-ids: it copies the
// image with other owners, and then asks for the id map all the same.
func TestCopyForUserNamespace(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0, 1, 3))
	n.mustPull(t, im, pulling{})
	ctx := pulling{}.context(t)
	copied := im.top().String() + "-200000-300000"
	mounts, err := n.meta.Prepare(ctx, copied+"-remap", im.top().String())
	require.NoError(t, err)
	root := mountAt(t, mounts)
	require.NoError(t, os.Lchown(filepath.Join(root, "etc/passwd"), 200000, 300000))
	require.NoError(t, n.meta.Commit(ctx, copied, copied+"-remap"))

	mounts, err = n.meta.Prepare(ctx, "container", copied, snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:200000:150000", snapshots.LabelSnapshotGIDMapping: "0:300000:150000",
	}))
	require.NoError(t, err)
	again, err := n.meta.Mounts(ctx, "container")
	require.NoError(t, err)
	require.Equal(t, mounts, again)
	for _, o := range mounts[0].Options {
		require.NotContains(t, o, "idmap=")
	}
	info, err := os.Lstat(filepath.Join(mountAt(t, mounts), "etc/passwd"))
	require.NoError(t, err)
	st, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	require.Equal(t, []uint32{200000, 300000}, []uint32{st.Uid, st.Gid})
}

// TestOwnerOfRoot: a container's root directory has the owner of its image's, as with the stock snapshotter.
func TestOwnerOfRoot(t *testing.T) {
	im := forge(t, "owned", nil, tarOf(t, entry{name: "f", body: "f"}), tarOf(t, entry{name: "g", body: "g"}))
	im.layers[0].owner, im.layers[1].owner = 4711, 815
	for _, how := range []pulling{{}, {parallel: 2, rebase: true}} {
		n := newNode(t, snapshotter.Config{}, im.layers)
		n.mustPull(t, im, how)
		for _, l := range []int{0, 1} {
			_, err := n.meta.Prepare(how.context(t), fmt.Sprint("c", l), im.layers[l].chainID.String())
			require.NoError(t, err)
			mounts, err := n.meta.Mounts(how.context(t), fmt.Sprint("c", l))
			require.NoError(t, err)
			info, err := os.Lstat(option(t, mounts[0], "upperdir="))
			require.NoError(t, err)
			st, ok := info.Sys().(*syscall.Stat_t)
			require.True(t, ok)
			require.Equal(t, []uint32{4711, 815}[l], st.Uid)
			require.Equal(t, []uint32{4711, 815}[l], st.Gid)
		}
	}
}

// TestFormOfOverlay fails when containerd's overlay snapshotter changes what this package relies on: where its
// directories are, how its mounts name them, and that it looks at the directory of a parent.
func TestFormOfOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := filepath.Join(t.TempDir(), "root")
	s, err := snapshotter.Open(t.Context(), snapshotter.Config{Root: root, Source: newSource()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	stock, ctx := snapshotter.Wrapped(s), t.Context()
	dir := func(id int, name string) string { return filepath.Join(root, "snapshots", fmt.Sprint(id), name) }
	parent := ""
	for i := 1; i <= 3; i++ {
		mounts, err := stock.Prepare(ctx, "key", parent)
		require.NoError(t, err)
		if i == 1 {
			require.Equal(t, []mount.Mount{{Type: "bind", Source: dir(1, "fs"), Options: []string{"rw", "rbind"}}}, mounts)
		}
		parent = fmt.Sprint("name-", i)
		require.NoError(t, stock.Commit(ctx, parent, "key"))
	}
	mounts, err := stock.Prepare(ctx, "top", parent)
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	require.Equal(t, "overlay", mounts[0].Type)
	require.Subset(t, mounts[0].Options, []string{
		"upperdir=" + dir(4, "fs"), "workdir=" + dir(4, "work"),
		"lowerdir=" + strings.Join([]string{dir(3, "fs"), dir(2, "fs"), dir(1, "fs")}, ":"),
	})
	view, err := stock.View(ctx, "view", "name-1")
	require.NoError(t, err)
	require.Equal(t, []mount.Mount{{Type: "bind", Source: dir(1, "fs"), Options: []string{"ro", "rbind"}}}, view)

	require.NoError(t, os.Remove(dir(3, "fs")))
	_, err = stock.Prepare(ctx, "orphan", parent)
	require.ErrorIs(t, err, os.ErrNotExist, "if it looks no more, there is no need to make the directory")
}

// TestNothingPointsAtTheDisk: not a path, link or mount below the snapshot directories does, whatever is done.
func TestNothingPointsAtTheDisk(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	for _, how := range []pulling{{}, {parallel: 4, rebase: true}} {
		n := newNode(t, snapshotter.Config{}, im.layers)
		n.mustPull(t, im, how)
		n.mounted(t, im, how)
		require.NoError(t, filepath.WalkDir(filepath.Join(n.root, "snapshots"), func(path string, d os.DirEntry, err error) error {
			require.NoError(t, err)
			require.True(t, d.IsDir(), "%s is a %s", path, d.Type())
			info, err := os.ReadFile("/proc/self/mountinfo")
			require.NoError(t, err)
			require.NotContains(t, string(info), " "+path+" ")
			return nil
		}))
	}
}

// TestUpdate: labels may change, but not whose bytes a snapshot stands for.
func TestUpdate(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, im.layers)
	ctx := context.WithoutCancel(pulling{}.context(t))
	name := adopt(ctx, t, n.berth, "extract-1 ", "", im.layers[0])
	before, err := n.berth.Adopted(ctx)
	require.NoError(t, err)

	for _, paths := range [][]string{nil, {"labels"}, {"labels.containerd.io/snapshot.ref"}, {"labels.mine", "labels"}} {
		info, err := n.berth.Update(ctx, snapshots.Info{Name: name, Labels: map[string]string{
			"mine": "1", "containerd.io/snapshot.ref": im.layers[1].chainID.String(), "berth.dev/adopted": "{}",
		}}, paths...)
		require.NoError(t, err)
		require.Equal(t, im.layers[0].chainID.String(), info.Labels["containerd.io/snapshot.ref"])
		require.NotContains(t, info.Labels, "berth.dev/adopted")
	}
	_, err = n.berth.Update(ctx, snapshots.Info{Name: name, Labels: map[string]string{"berth.dev/adopted": "{}"}}, "labels.berth.dev/adopted")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)

	info, err := n.berth.Stat(ctx, name)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"mine": "1", "containerd.io/snapshot.ref": im.layers[0].chainID.String()}, info.Labels)
	require.NoError(t, n.berth.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		require.NotContains(t, info.Labels, "berth.dev/adopted")
		return nil
	}))
	after, err := n.berth.Adopted(ctx)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Equal(t, name, adoptAgain(ctx, t, n, im.layers[0]))

	// A local snapshot's target may be set and changed, and the walk finds it.
	_, err = n.berth.Prepare(ctx, "local", "")
	require.NoError(t, err)
	for _, ref := range []string{"sha256:1", "sha256:2"} {
		_, err = n.berth.Update(ctx, snapshots.Info{Name: "local", Labels: map[string]string{"containerd.io/snapshot.ref": ref}})
		require.NoError(t, err)
		require.Equal(t, []string{"local"}, walk(t, n.berth, `labels."containerd.io/snapshot.ref"==`+ref+`,parent==""`))
	}
	require.Empty(t, walk(t, n.berth, `labels."containerd.io/snapshot.ref"==sha256:1,parent==""`))
}

func adoptAgain(ctx context.Context, t testing.TB, n *node, l layer) string {
	t.Helper()
	return adopt(ctx, t, n.berth, "extract-2 ", "", l)
}

func walk(t testing.TB, s snapshots.Snapshotter, filters ...string) (names []string) {
	t.Helper()
	require.NoError(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}, filters...))
	slices.Sort(names)
	return names
}
