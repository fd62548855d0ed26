package layertest

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive" //nolint:depguard // what tests compare with; no product code imports this package
	"github.com/containerd/continuity/sysx"
	"github.com/stretchr/testify/require"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// Mount mounts source on a new directory until the test ends.
func Mount(t testing.TB, source, kind, options string, flags uintptr) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount(source, dir, kind, flags, options)) //nolint:forbidigo // the package under fsmount must not need fsmount to be tested
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })    //nolint:forbidigo // as above
	return dir
}

// Directory is a tmpfs for layers that containerd unpacks, until the test ends.
type Directory struct {
	root string
}

// Scratch mounts a Directory.
func Scratch(t testing.TB) *Directory {
	t.Helper()
	return &Directory{root: Mount(t, "tmpfs", "tmpfs", "", 0)}
}

// Apply unpacks a layer with containerd and returns the directory, which the next Apply removes.
func (d *Directory) Apply(t testing.TB, layer []byte) (string, error) {
	t.Helper()
	dir := filepath.Join(d.root, "fs")
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.Mkdir(dir, 0o755))
	_, err := archive.Apply(t.Context(), dir, bytes.NewReader(layer), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	return dir, err
}

// ApplyOn unpacks a layer as it is done for containerd's overlay snapshotter, on top of these layers from the top, into
// a directory of its own that Clear removes. Without lower layers that is a plain directory.
func (d *Directory) ApplyOn(t testing.TB, layer []byte, lower ...string) (string, error) {
	t.Helper()
	dir := filepath.Join(d.root, fmt.Sprint(len(lower)))
	require.NoError(t, os.Mkdir(dir, 0o755))
	var opts []archive.ApplyOpt
	if len(lower) > 0 {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(lower))
	}
	_, err := archive.Apply(t.Context(), dir, bytes.NewReader(layer), opts...)
	return dir, err
}

// Clear removes what was unpacked.
func (d *Directory) Clear(t testing.TB) {
	t.Helper()
	names, err := os.ReadDir(d.root)
	require.NoError(t, err)
	for _, n := range names {
		require.NoError(t, os.RemoveAll(filepath.Join(d.root, n.Name())))
	}
}

// Apply unpacks one layer with containerd.
func Apply(t testing.TB, layer []byte) (string, error) {
	t.Helper()
	return Scratch(t).Apply(t, layer)
}

// Seen is everything that lstat, listxattr and reading report about a name.
type Seen struct {
	Mode, Nlink, UID, GID uint32
	Size                  int64
	Rdev                  uint64
	Mtime                 string
	Target, Content       string
	Xattrs                string
	Group                 string // first path of the same inode
}

// Look walks a directory with nothing but system calls. Sizes of directories are left out, because every file system
// counts them its own way.
func Look(t testing.TB, root string) map[string]Seen {
	t.Helper()
	out := make(map[string]Seen)
	groups := make(map[uint64]string)
	require.NoError(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		s := Seen{
			Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Size: st.Size, Rdev: st.Rdev,
			Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec), Group: rel,
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			s.Size = 0
		case unix.S_IFLNK:
			if s.Target, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s.Content = fmt.Sprintf("%x", blake3.Sum256(b))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first, ok := groups[st.Ino]; ok {
				s.Group = first
			} else {
				groups[st.Ino] = rel
			}
		}
		s.Xattrs, err = xattrsOf(p)
		out[rel] = s
		return err
	}))
	return out
}

func xattrsOf(p string) (string, error) {
	names, err := sysx.LListxattr(p)
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	var b strings.Builder
	for _, n := range names {
		v, err := sysx.LGetxattr(p, n)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%q=%x\n", n, v)
	}
	return b.String(), nil
}

// RequireSame compares an unpacked layer with what Apply made of it, entry by entry. untimed are the names that Apply
// gives the time of the clock.
func RequireSame(t testing.TB, want, got map[string]Seen, untimed ...string) {
	t.Helper()
	for _, p := range append(untimed, ".") {
		w, ok := want[p]
		require.True(t, ok, "no %q", p)
		w.Mtime = "0.000000000"
		want[p] = w
	}
	paths := make([]string, 0, len(want))
	for p := range want {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, cmp.Compare[string])
	bad := 0
	for _, p := range paths {
		g, ok := got[p]
		if !ok {
			t.Errorf("%q is missing", p)
			bad++
		} else if g != want[p] {
			t.Errorf("%q differs:\nwant %+v\ngot  %+v", p, want[p], g)
			bad++
		}
		if bad > 20 {
			t.FailNow()
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q should not be there", p)
		}
	}
}
