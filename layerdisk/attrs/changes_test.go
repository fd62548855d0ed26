package attrs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

type change struct {
	name   string
	change func(t *testing.T, root string)
	// keepTimes leaves the directories' times as the change made them.
	keepTimes bool
	want      []string
}

// changes has one of every attribute, of every type where the type makes a difference.
func changes() []change {
	in := func(name string, f func(t *testing.T, name string)) func(*testing.T, string) {
		return func(t *testing.T, root string) { f(t, filepath.Join(root, name)) }
	}
	mode := func(m uint32) func(*testing.T, string) {
		return func(t *testing.T, name string) { require.NoError(t, unix.Chmod(name, m)) }
	}
	xattr := func(key, value string) func(*testing.T, string) {
		return func(t *testing.T, name string) { require.NoError(t, unix.Lsetxattr(name, key, []byte(value), 0)) }
	}
	noXattr := func(key string) func(*testing.T, string) {
		return func(t *testing.T, name string) { require.NoError(t, unix.Lremovexattr(name, key)) }
	}
	remove := func(t *testing.T, name string) { require.NoError(t, os.Remove(name)) }
	device := func(kind uint32, major, minor uint32) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			st := stat(t, name)
			remove(t, name)
			require.NoError(t, unix.Mknod(name, kind, int(unix.Mkdev(major, minor))))
			require.NoError(t, unix.Chmod(name, st.Mode&0o7777))
			setTime(t, name, st.Mtim.Sec, uint32(st.Mtim.Nsec))
		}
	}
	return append(linkChanges(), []change{
		{"mode", in("setuid", mode(0o755)), false, []string{"setuid: mode is 0755, want 6755"}},
		{"mode of a directory", in("dir", mode(0o777)), false, []string{"dir: mode is 0777, want 1777"}},
		{"mode of the root", in(".", mode(0o700)), false, []string{".: mode is 0700, want 0755"}},
		{"mode of a device", in("char", mode(0o660)), false, []string{"char: mode is 0660, want 0666"}},
		{"owner", in("-before-dot", func(t *testing.T, name string) { require.NoError(t, os.Lchown(name, 4294967294, -1)) }), false,
			[]string{"-before-dot: uid is 4294967294, want 0"}},
		{"group of a symbolic link", in("long-link", func(t *testing.T, name string) { require.NoError(t, os.Lchown(name, -1, 65536)) }), false,
			[]string{"long-link: gid is 65536, want 0"}},
		{"mtime by a nanosecond", in("setuid", func(t *testing.T, name string) { setTime(t, name, 1700000000, 123456788) }), false,
			[]string{"setuid: mtime is 1700000000.123456788, want 1700000000.123456789"}},
		{"mtime before 1970", in("long-link", func(t *testing.T, name string) { setTime(t, name, 0, 999999999) }), false,
			[]string{"long-link: mtime is 0.999999999, want -1.999999999"}},
		{"mtime of a directory", in("dir", func(t *testing.T, name string) { setTime(t, name, -86400, 2) }), true,
			[]string{"dir: mtime is -86400.000000002, want -86400.000000001"}},
		{"device number", in("block", device(unix.S_IFBLK, 259, 1001)), false, []string{"block: device is 259:1001, want 259:1000"}},
		{"character to block device", in("char", device(unix.S_IFBLK, 1, 3)), false, []string{"char: type is block device, want character device"}},
		{"whiteout to device", in("dir/whiteout", device(unix.S_IFCHR, 0, 1)), false, []string{`dir/whiteout: device is 0:1, want 0:0`}},
		{"FIFO to socket", in("socket", device(unix.S_IFIFO, 0, 0)), false, []string{"socket: type is FIFO, want socket"}},
		{"one byte", in("big", func(t *testing.T, name string) { edit(t, name, 1<<21, "X") }), false,
			[]string{"big: content is "}},
		{"one byte in a hole", in("sparse", func(t *testing.T, name string) { edit(t, name, 1<<20, "X") }), false, []string{"sparse: content is "}},
		{"longer by a zero", in("-before-dot", func(t *testing.T, name string) { edit(t, name, 0, "\x00") }), false,
			[]string{"-before-dot: size is 1, want 0", "-before-dot: content is "}},
		{"capability", in("capable", xattr("security.capability", string(capability[:18])+"\x01\x00")), false, []string{"capable: xattr:security.capability is "}},
		{"capability gone", in("capable", noXattr("security.capability")), false, []string{"capable: xattr:security.capability is not there, want "}},
		{"opaque gone", in("dir/opaque", noXattr("trusted.overlay.opaque")), false,
			[]string{`dir/opaque: xattr:trusted.overlay.opaque is not there, want "y"`}},
		{"opaque of another kind", in("dir/opaque", xattr("trusted.overlay.opaque", "x")), false,
			[]string{`dir/opaque: xattr:trusted.overlay.opaque is "x", want "y"`}},
		{"empty xattr gone", in("capable", noXattr("user.empty")), false, []string{`capable: xattr:user.empty is not there, want ""`}},
		{"xattr of a symbolic link", in("symlink", xattr("trusted.new", "")), false, []string{
			`symlink: xattr:trusted.new is "", want not there`, `symlink-again: xattr:trusted.new is "", want not there`}},
		{"xattr of the root", in(".", xattr("user.root", "2")), false, []string{`.: xattr:user.root is "2", want "1"`}},
		{"ACL", in("acl", xattr("system.posix_acl_access", string(posixACL([]aclEntry{
			{1, 6, ^uint32(0)}, {2, 4, 1235}, {4, 4, ^uint32(0)}, {16, 4, ^uint32(0)}, {32, 4, ^uint32(0)}})))), false,
			[]string{"acl: xattr:system.posix_acl_access is "}},
		{"default ACL gone", in("dir/opaque", noXattr("system.posix_acl_default")), false,
			[]string{"dir/opaque: xattr:system.posix_acl_default is not there, want "}},
		{"missing", in("fifo", remove), false, []string{"fifo: missing (FIFO)", "fifo-again: link is not there, want fifo"}},
		{"extra", in("dir/new", func(t *testing.T, name string) { require.NoError(t, os.Mkdir(name, 0o755)) }), false,
			[]string{"dir/new: not wanted (directory)"}},
		{"other name", in("", func(t *testing.T, root string) {
			require.NoError(t, os.Rename(filepath.Join(root, "block"), filepath.Join(root, "blocK")))
		}), false, []string{"blocK: not wanted (block device 259:1000)", "block: missing (block device 259:1000)"}},
	}...)
}

func linkChanges() []change {
	return []change{
		{"target", func(t *testing.T, root string) {
			for _, name := range []string{"symlink", "symlink-again"} {
				require.NoError(t, os.Remove(filepath.Join(root, name)))
			}
			require.NoError(t, os.Symlink("../../etc/shadow", filepath.Join(root, "symlink")))
			require.NoError(t, os.Link(filepath.Join(root, "symlink"), filepath.Join(root, "symlink-again")))
			setTime(t, filepath.Join(root, "symlink"), 1700000000, 123456789)
		}, false, []string{"symlink: target is ../../etc/shadow, want ../../etc/passwd", "symlink-again: target is ../../etc/shadow, want ../../etc/passwd"}},
		{"hard link broken", func(t *testing.T, root string) {
			name := filepath.Join(root, "zlink")
			require.NoError(t, os.Remove(name))
			require.NoError(t, os.WriteFile(name, []byte("content"), 0o644))
			require.NoError(t, os.Lchown(name, 3e9, 3e9+1))
			setTime(t, name, 1700000000, 123456789)
		}, false, []string{"zlink: link is not there, want dir/also"}},
		{"hard link made", func(t *testing.T, root string) {
			name := filepath.Join(root, "fifo-again")
			require.NoError(t, os.Remove(name))
			require.NoError(t, unix.Mknod(name, unix.S_IFIFO|0o600, 0))
			setTime(t, name, 1700000000, 123456789)
			require.NoError(t, os.Link(name, filepath.Join(root, "fifo-third")))
		}, false, []string{"fifo-again: link is not there, want fifo", "fifo-third: not wanted (FIFO)"}},
		{"hard link to another inode", func(t *testing.T, root string) {
			require.NoError(t, os.Remove(filepath.Join(root, "symlink-again")))
			require.NoError(t, os.Link(filepath.Join(root, "long-link"), filepath.Join(root, "symlink-again")))
		}, false, []string{
			"symlink-again: mtime is -1.999999999, want 1700000000.123456789",
			"symlink-again: target is " + longTarget + ", want ../../etc/passwd",
			"symlink-again: link is long-link, want symlink",
		}},
	}
}

func stat(t *testing.T, name string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(name, &st))
	return st
}

// edit overwrites bytes and leaves the time as it was.
func edit(t *testing.T, name string, offset int64, data string) {
	t.Helper()
	st := stat(t, name)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(data), offset)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	setTime(t, name, st.Mtim.Sec, uint32(st.Mtim.Nsec))
}
