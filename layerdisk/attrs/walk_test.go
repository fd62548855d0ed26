package attrs_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/attrs"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

var (
	longName   = strings.Repeat("n", 255)
	longTarget = strings.Repeat("t/", 2047) + "t" // 4095 bytes
	notUTF8    = "caf\xe9 \xff\n\\"
	// Capability cap_net_raw+ep, version 2 (linux/capability.h), and a POSIX ACL with one named user
	// (linux/posix_acl_xattr.h).
	capability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	acl        = posixACL([]aclEntry{{1, 6, ^uint32(0)}, {2, 4, 1234}, {4, 4, ^uint32(0)}, {16, 4, ^uint32(0)}, {32, 4, ^uint32(0)}})
)

type aclEntry struct {
	tag, perm uint16
	who       uint32
}

func posixACL(entries []aclEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.who)
	}
	return b
}

// node is one inode of the torture tree.
type node struct {
	entry attrs.Entry
	data  string
	names []string // further hard links
}

// torture is a tree with everything that an image layer can hold, in an order in which it can be made.
func torture() []node {
	const day = 86400
	at := func(e attrs.Entry) attrs.Entry {
		if e.MtimeSec == 0 {
			e.MtimeSec, e.MtimeNsec = 1700000000, 123456789
		}
		return e
	}
	nodes := []node{
		{entry: attrs.Entry{Path: ".", Type: attrs.Directory, Mode: 0o755, UID: 7, GID: 8, Xattrs: map[string][]byte{"user.root": []byte("1")}}},
		{entry: attrs.Entry{Path: "-before-dot", Type: attrs.Regular, Mode: 0o644}},
		{entry: attrs.Entry{Path: "dir", Type: attrs.Directory, Mode: 0o1777, MtimeSec: -day, MtimeNsec: 1}},
		{entry: attrs.Entry{Path: "dir-sibling", Type: attrs.Regular, Mode: 0o600}, data: "sorts between dir and dir/"},
		{entry: attrs.Entry{Path: "dir/opaque", Type: attrs.Directory, Mode: 0o2750, Xattrs: map[string][]byte{
			"trusted.overlay.opaque": []byte("y"), "system.posix_acl_default": acl}}},
		{entry: attrs.Entry{Path: "dir/whiteout", Type: attrs.CharDev, Mode: 0}},
		{entry: attrs.Entry{Path: "dir/file", Type: attrs.Regular, Mode: 0o644, UID: 3e9, GID: 3e9 + 1}, data: "content", names: []string{"dir/also", "zlink"}},
		{entry: attrs.Entry{Path: "setuid", Type: attrs.Regular, Mode: 0o6755}, data: "#!/bin/sh\n"},
		{entry: attrs.Entry{Path: "capable", Type: attrs.Regular, Mode: 0o755, Xattrs: map[string][]byte{
			"security.capability": capability, "user.empty": {}, "user.bytes": {0, 1, 0xff, '\n', '='}, "trusted.mine": []byte("t")}}, data: "x"},
		{entry: attrs.Entry{Path: "acl", Type: attrs.Regular, Mode: 0o644, Xattrs: map[string][]byte{"system.posix_acl_access": acl}}},
		{entry: attrs.Entry{Path: "symlink", Type: attrs.Symlink, Mode: 0o777, Target: "../../etc/passwd"}, names: []string{"symlink-again"}},
		{entry: attrs.Entry{Path: "long-link", Type: attrs.Symlink, Mode: 0o777, Target: longTarget, MtimeSec: -1, MtimeNsec: 999999999}},
		{entry: attrs.Entry{Path: "fifo", Type: attrs.FIFO, Mode: 0o600}, names: []string{"fifo-again"}},
		{entry: attrs.Entry{Path: "socket", Type: attrs.Socket, Mode: 0o755}},
		{entry: attrs.Entry{Path: "char", Type: attrs.CharDev, Mode: 0o666, DevMajor: 1, DevMinor: 3}},
		{entry: attrs.Entry{Path: "block", Type: attrs.BlockDev, Mode: 0o660, DevMajor: 259, DevMinor: 1000}},
		{entry: attrs.Entry{Path: notUTF8, Type: attrs.Directory, Mode: 0o700}},
		{entry: attrs.Entry{Path: notUTF8 + "/" + longName, Type: attrs.Regular, Mode: 0o400, MtimeSec: 1<<33 + 5}, data: "far in the future"},
		{entry: attrs.Entry{Path: "big", Type: attrs.Regular, Mode: 0o644}, data: strings.Repeat("0123456789abcdef", 200000)},
		{entry: attrs.Entry{Path: "sparse", Type: attrs.Regular, Mode: 0o644, Size: 5 << 20}},
	}
	for i := range 12 { // deep
		nodes = append(nodes, node{entry: attrs.Entry{Path: "deep" + strings.Repeat("/"+longName[:200], i), Type: attrs.Directory, Mode: 0o755}})
	}
	for i := range nodes {
		nodes[i].entry = at(nodes[i].entry)
	}
	return nodes
}

// makeTree makes the nodes below a new directory.
func makeTree(t *testing.T, nodes []node) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	for _, n := range nodes {
		makeNode(t, root, n)
		for _, name := range n.names {
			require.NoError(t, os.Link(filepath.Join(root, n.entry.Path), filepath.Join(root, name)))
		}
	}
	// Only now, because an entry inherits its directory's default ACL, and making it changes its directory's time.
	for _, n := range nodes {
		for k, v := range n.entry.Xattrs {
			require.NoError(t, unix.Lsetxattr(filepath.Join(root, n.entry.Path), k, v, 0), k)
		}
		setTime(t, filepath.Join(root, n.entry.Path), n.entry.MtimeSec, n.entry.MtimeNsec)
	}
	return root
}

func setTime(t *testing.T, name string, sec int64, nsec uint32) {
	t.Helper()
	ts := unix.Timespec{Sec: sec, Nsec: int64(nsec)}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

func makeNode(t *testing.T, root string, n node) {
	t.Helper()
	e, name := n.entry, filepath.Join(root, n.entry.Path)
	switch e.Type {
	case attrs.Directory:
		require.NoError(t, os.Mkdir(name, 0o700))
	case attrs.Regular:
		require.NoError(t, os.WriteFile(name, []byte(n.data), 0o600))
		if n.data == "" {
			require.NoError(t, os.Truncate(name, e.Size))
		}
	case attrs.Symlink:
		require.NoError(t, os.Symlink(e.Target, name))
	case attrs.CharDev:
		require.NoError(t, unix.Mknod(name, unix.S_IFCHR, int(unix.Mkdev(e.DevMajor, e.DevMinor))))
	case attrs.BlockDev:
		require.NoError(t, unix.Mknod(name, unix.S_IFBLK, int(unix.Mkdev(e.DevMajor, e.DevMinor))))
	case attrs.FIFO:
		require.NoError(t, unix.Mknod(name, unix.S_IFIFO, 0))
	case attrs.Socket:
		require.NoError(t, unix.Mknod(name, unix.S_IFSOCK, 0))
	}
	require.NoError(t, os.Lchown(name, int(e.UID), int(e.GID)))
	if e.Type != attrs.Symlink {
		require.NoError(t, unix.Chmod(name, e.Mode))
	}
}

// listing is what FromDir has to find.
func listing(nodes []node) []attrs.Entry {
	var entries []attrs.Entry
	for _, n := range nodes {
		e := n.entry
		switch e.Type { //nolint:exhaustive // the others have no size
		case attrs.Regular:
			if n.data == "" {
				n.data = string(make([]byte, e.Size))
			}
			e.Size, e.Content = int64(len(n.data)), blake3.Sum256([]byte(n.data))
		case attrs.Symlink:
			e.Size = int64(len(e.Target))
		}
		names := append([]string{e.Path}, n.names...)
		slices.Sort(names)
		e.Path = names[0]
		entries = append(entries, e)
		for _, name := range names[1:] {
			link := e
			link.Path, link.HardLink, link.Content = name, names[0], [32]byte{}
			entries = append(entries, link)
		}
	}
	slices.SortFunc(entries, attrs.Compare)
	return entries
}

func TestFromDir(t *testing.T) {
	needRoot(t)
	nodes := torture()
	want := listing(nodes)
	got, err := attrs.FromDir(t.Context(), makeTree(t, nodes))
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Empty(t, attrs.Diff(want, got))

	wantDigest, err := attrs.Digest(slices.Values(want))
	require.NoError(t, err)
	gotDigest, err := attrs.Digest(slices.Values(got))
	require.NoError(t, err)
	require.Equal(t, wantDigest, gotDigest)
}

// TestEveryChange changes one attribute at a time and wants that change reported and nothing else.
func TestEveryChange(t *testing.T) {
	needRoot(t)
	for _, tt := range changes() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			nodes := torture()
			root := makeTree(t, nodes)
			tt.change(t, root)
			// Whatever the change did to the directories' times is not what it is about.
			for _, n := range nodes {
				if n.entry.Type == attrs.Directory && !tt.keepTimes {
					if _, err := os.Lstat(filepath.Join(root, n.entry.Path)); err == nil {
						setTime(t, filepath.Join(root, n.entry.Path), n.entry.MtimeSec, n.entry.MtimeNsec)
					}
				}
			}
			got, err := attrs.FromDir(t.Context(), root)
			require.NoError(t, err)
			want := listing(nodes)
			var lines []string
			for _, d := range attrs.Diff(want, got) {
				lines = append(lines, d.String())
			}
			require.Len(t, lines, len(tt.want), "%q", lines)
			for i, line := range lines {
				// A hash is not written down in the table: its line ends in a space.
				if strings.HasSuffix(tt.want[i], " ") {
					require.True(t, strings.HasPrefix(line, tt.want[i]), line)
				} else {
					require.Equal(t, tt.want[i], line)
				}
			}
			wantDigest, err := attrs.Digest(slices.Values(want))
			require.NoError(t, err)
			gotDigest, err := attrs.Digest(slices.Values(got))
			require.NoError(t, err)
			require.NotEqual(t, wantDigest, gotDigest)
		})
	}
}

func TestFromDirRefuses(t *testing.T) {
	needRoot(t)
	t.Run("another file system below", func(t *testing.T) {
		root := makeTree(t, torture())
		require.NoError(t, unix.Mount("tmpfs", filepath.Join(root, "dir"), "tmpfs", 0, ""))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(filepath.Join(root, "dir"), 0)) })
		_, err := attrs.FromDir(t.Context(), root)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, `"dir"`)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := attrs.FromDir(ctx, makeTree(t, torture()))
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("not a directory", func(t *testing.T) {
		_, err := attrs.FromDir(t.Context(), filepath.Join(makeTree(t, torture()), "setuid"))
		require.ErrorIs(t, err, unix.ENOTDIR)
	})
}

// TestFromDirLeavesNoFilesOpen counts the process's open files in the tree afterwards.
func TestFromDirLeavesNoFilesOpen(t *testing.T) {
	needRoot(t)
	root := makeTree(t, torture())
	_, err := attrs.FromDir(t.Context(), root)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	_, err = attrs.FromDir(ctx, root)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range open {
		target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%s", fd.Name()))
		require.True(t, err != nil || !strings.HasPrefix(target, root), "still open: %s", target)
	}
}
