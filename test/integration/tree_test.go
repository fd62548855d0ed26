//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/test/harness/berth"
)

func (n *node) chainIDs(p pushed) []digest.Digest {
	n.Helper()
	config, err := p.img.ConfigFile()
	require.NoError(n, err)
	var diffIDs []digest.Digest
	for _, d := range config.RootFS.DiffIDs {
		diffIDs = append(diffIDs, digest.Digest(d.String()))
	}
	return identity.ChainIDs(diffIDs)
}

// withSnapshotter calls use with a snapshotter of the running containerd, in the node's namespace.
func (n *node) withSnapshotter(name string, use func(context.Context, snapshots.Snapshotter)) {
	n.Helper()
	c, err := n.containerd.Client()
	require.NoError(n, err)
	defer func() { require.NoError(n, c.Close()) }()
	use(namespaces.WithNamespace(n.Context(), filepath.Base(n.dir)), c.SnapshotService(name))
}

// tree is the whole content of an image as a container of it sees it, every attribute of every entry.
func (n *node) tree(p pushed, snapshotter string) []attrs.Entry {
	n.Helper()
	chains := n.chainIDs(p)
	var tree []attrs.Entry
	n.withSnapshotter(snapshotter, func(ctx context.Context, sn snapshots.Snapshotter) {
		key := "tree-" + snapshotter + digest.FromString(p.ref).Encoded()
		// Without the label, garbage collection takes what nothing refers to.
		root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"})
		mounts, err := sn.View(ctx, key, chains[len(chains)-1].String(), root)
		require.NoError(n, err)
		dir, err := os.MkdirTemp(n.dir, "v")
		require.NoError(n, err)
		require.NoError(n, mount.All(mounts, dir))
		tree, err = attrs.FromDir(ctx, dir)
		err = errors.Join(err, mount.UnmountMounts(mounts, dir, 0), sn.Remove(ctx, key))
		require.NoError(n, err)
		n.requireOneDevice(ctx, sn, chains[len(chains)-1].String())
	})
	require.NotEmpty(n, tree)
	// No layer can set the modification time of the root directory: containerd ignores its entry, so it is the time of
	// unpacking.
	require.Equal(n, ".", tree[0].Path)
	tree[0].MtimeSec, tree[0].MtimeNsec = 0, 0
	return tree
}

// requireOneDevice looks at what a container on parent sees as programs do that stay on one file system, such as du -x.
func (n *node) requireOneDevice(ctx context.Context, sn snapshots.Snapshotter, parent string) {
	n.Helper()
	mounts, err := sn.Prepare(ctx, "device-"+parent, parent, snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"}))
	require.NoError(n, err)
	dir, err := os.MkdirTemp(n.dir, "v")
	require.NoError(n, err)
	require.NoError(n, mount.All(mounts, dir))
	var root unix.Stat_t
	err = unix.Lstat(dir, &root)
	other := ""
	err = errors.Join(err, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Dev != root.Dev {
			other = path
		}
		return nil
	}))
	require.NoError(n, errors.Join(err, mount.UnmountMounts(mounts, dir, 0), sn.Remove(ctx, "device-"+parent)))
	require.Empty(n, other, "has another device number than the root")
}

// requireSameTree compares what berth gives with what overlayfs gives.
func (n *node) requireSameTree(p pushed) {
	n.Helper()
	n.pullOverlay(p)
	want, got := n.tree(p, "overlayfs"), n.tree(p, berth.PluginName)
	diffs := attrs.Diff(want, got)
	var text strings.Builder
	for _, d := range diffs[:min(20, len(diffs))] {
		fmt.Fprintln(&text, d)
	}
	require.Empty(n, diffs, "differs from overlayfs in %d places:\n%s", len(diffs), text.String())
}

// usage of each layer's snapshot, lowest first.
func (n *node) usage(p pushed) []snapshots.Usage {
	n.Helper()
	var all []snapshots.Usage
	n.withSnapshotter(berth.PluginName, func(ctx context.Context, sn snapshots.Snapshotter) {
		for _, chain := range n.chainIDs(p) {
			u, err := sn.Usage(ctx, chain.String())
			require.NoError(n, err)
			all = append(all, u)
		}
	})
	return all
}

// localBytes are what berth's snapshots take on the local file system, by the blocks of their files.
func (n *node) localBytes() int64 {
	n.Helper()
	var sum int64
	root := filepath.Join(n.berthd.Root(), "snapshots")
	require.NoError(n, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			sum += st.Blocks * 512
		}
		return nil
	}))
	return sum
}
