package verify_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/builder/verify"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// populate makes a small tree with what mkfs must keep.
func populate(t *testing.T) func(layer, dir string) {
	return func(layer, dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "name"), []byte(layer), 0o644))
		require.NoError(t, unix.Chmod(filepath.Join(dir, "name"), 0o4755))
		require.NoError(t, os.Link(filepath.Join(dir, "name"), filepath.Join(dir, "other")))
		require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
		require.NoError(t, unix.Setxattr(filepath.Join(dir, "sub"), "trusted.overlay.opaque", []byte("y"), 0))
		require.NoError(t, unix.Mknod(filepath.Join(dir, "sub", "gone"), unix.S_IFCHR, 0))
		require.NoError(t, os.Symlink("../name", filepath.Join(dir, "sub", "link")))
	}
}

var images = []layerdisktest.Image{
	{Reference: "docker.io/library/app:1.0", Layers: []string{"base", "lib", "app"}},
	{Reference: "docker.io/library/tool:1.0", Layers: []string{"base", "tool"}},
}

func TestDir(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name     string
		change   func(t *testing.T, dir string)
		problems []string
		// layers' findings by number.
		layers map[int][]string
	}{
		{name: "sound", change: func(*testing.T, string) {}},
		{name: "mode", change: func(t *testing.T, dir string) {
			require.NoError(t, unix.Chmod(filepath.Join(dir, "l/1/name"), 0o755))
		}, layers: map[int][]string{1: {"name: mode is 0755, want 4755", "other: mode is 0755, want 4755"}}},
		{name: "two layers", change: func(t *testing.T, dir string) {
			require.NoError(t, unix.Removexattr(filepath.Join(dir, "l/0/sub"), "trusted.overlay.opaque"))
			require.NoError(t, os.Lchown(filepath.Join(dir, "l/3/sub/link"), 1, 2))
		}, layers: map[int][]string{
			0: {`sub: xattr:trusted.overlay.opaque is not there, want "y"`},
			3: {"sub/link: uid is 1, want 0", "sub/link: gid is 2, want 0"},
		}},
		{name: "layer directory missing", change: func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "l/2")))
		}, layers: map[int][]string{2: {"layer disk is corrupt: directory l/2 is missing"}}},
		{name: "layer directory is a link", change: func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, "l/2"), filepath.Join(dir, "elsewhere")))
			require.NoError(t, os.Symlink("../elsewhere", filepath.Join(dir, "l/2")))
		}, layers: map[int][]string{2: {"layer disk is corrupt: l/2 is not a directory"}}},
		{name: "unknown layers and listings", change: func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(filepath.Join(dir, "l/4"), 0o755))
			require.NoError(t, os.Mkdir(filepath.Join(dir, "l/01"), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "berth/attrs/x y"), nil, 0o644))
		}, problems: []string{"l/01 belongs to no layer", "l/4 belongs to no layer", `berth/attrs/x\x20y belongs to no layer`}},
		{name: "listing missing", change: func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "berth/attrs/1")))
		}, layers: map[int][]string{1: {"its stored listing berth/attrs/1 is missing"}}},
		{name: "listing of another layer, tree changed", change: func(t *testing.T, dir string) {
			data, err := os.ReadFile(filepath.Join(dir, "berth/attrs/0"))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "berth/attrs/1"), data, 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "l/1/more"), []byte("12"), 0o644))
		}, layers: map[int][]string{1: {
			"its stored listing berth/attrs/1 has digest blake3:", "it has 6 inodes, the index says 5",
			"its files have 5 bytes, the index says 3", "the digest of its attributes is blake3:",
		}}},
		{name: "cannot be listed", change: func(t *testing.T, dir string) {
			require.NoError(t, unix.Mount("tmpfs", filepath.Join(dir, "l/1/sub"), "tmpfs", 0, ""))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(filepath.Join(dir, "l/1/sub"), 0)) })
		}, layers: map[int][]string{1: {"list tree "}}},
		{name: "listing is not one", change: func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "berth/attrs/1"), []byte("nothing"), 0o644))
		}, layers: map[int][]string{1: {"its stored listing berth/attrs/1: read listing: decompress listing: "}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			layerdisktest.Tree(t, dir, layerdisk.FileSystemEROFS, populate(t), images...)
			before := times(t, dir)
			tt.change(t, dir)
			restore(t, before)
			var seen []verify.LayerReport
			report, err := verify.Dir(t.Context(), dir, verify.Options{Layer: func(l verify.LayerReport) { seen = append(seen, l) }})
			require.NoError(t, err)
			require.Equal(t, report.Layers, seen)
			requirePrefixes(t, tt.problems, report.Problems)
			require.Len(t, report.Layers, 4)
			findings := len(tt.problems)
			for _, l := range report.Layers {
				lines := l.Problems
				for _, d := range l.Differences {
					lines = append(lines, d.String())
				}
				requirePrefixes(t, tt.layers[l.Number], lines)
				findings += len(lines)
			}
			require.Equal(t, findings, report.Findings())
		})
	}
}

func requirePrefixes(t *testing.T, want, got []string) {
	t.Helper()
	require.Len(t, got, len(want), "%q", got)
	for i := range want {
		require.GreaterOrEqual(t, len(got[i]), len(want[i]), got[i])
		require.Equal(t, want[i], got[i][:len(want[i])])
	}
}

// times of all directories, which changes of their entries change.
func times(t *testing.T, dir string) map[string]unix.Stat_t {
	t.Helper()
	found := make(map[string]unix.Stat_t)
	require.NoError(t, filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(name, &st)
		found[name] = st
		return err
	}))
	return found
}

func restore(t *testing.T, times map[string]unix.Stat_t) {
	t.Helper()
	for name, st := range times {
		err := unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
		if err != unix.ENOENT {
			require.NoError(t, err)
		}
	}
}

func TestDisk(t *testing.T) {
	needRoot(t)
	for _, fileSystem := range []string{layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4} {
		t.Run(fileSystem, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk.img")
			ix, id := layerdisktest.Disk(t, file, fileSystem, populate(t), images...)
			requireClean(t, file)

			report, err := verify.Disk(t.Context(), file, verify.Options{Want: id})
			require.NoError(t, err)
			require.Equal(t, id, report.Identity)
			require.Zero(t, report.Findings(), "%+v", report)
			require.Len(t, report.Layers, len(ix.Layers))
			require.Equal(t, 6, report.Layers[0].Entries)

			t.Run("block device and mounted", func(t *testing.T) {
				loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{ReadOnly: true})
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.WithoutCancel(t.Context()), loop)) })
				report, err := verify.Disk(t.Context(), loop.Path, verify.Options{Want: id})
				require.NoError(t, err)
				require.Zero(t, report.Findings())

				dir := t.TempDir()
				require.NoError(t, fsmount.Mount(loop.Path, dir, fsmount.FileSystem(fileSystem)))
				t.Cleanup(func() { require.NoError(t, fsmount.Unmount(dir)) })
				mounted, err := layerdisk.OpenMounted(t.Context(), dir, id)
				require.NoError(t, err)
				require.Equal(t, ix, mounted.Index)
				report, err = verify.Disk(t.Context(), dir, verify.Options{Want: id})
				require.NoError(t, err)
				require.Zero(t, report.Findings())
			})
			t.Run("another disk than wanted", func(t *testing.T) {
				_, err := verify.Disk(t.Context(), file, verify.Options{Want: layerdisk.Identity{UUID: "7d0f5a3e-2c64-4b1b-9a57-c6f2b1c0d9e4"}})
				require.ErrorIs(t, err, layerdisk.ErrOtherDisk)
			})
			t.Run("cancelled between layers", func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				_, err := verify.Disk(ctx, file, verify.Options{Layer: func(verify.LayerReport) { cancel() }})
				require.ErrorIs(t, err, context.Canceled)
			})
		})
	}
}

func TestNoLayers(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	layerdisktest.Tree(t, dir, layerdisk.FileSystemEROFS, nil, layerdisktest.Image{Reference: "docker.io/library/empty:1"})
	require.NoError(t, os.Remove(filepath.Join(dir, layerdisk.ListingsDir)))
	_, err := layerdisk.OpenMounted(t.Context(), dir, layerdisk.Identity{})
	require.NoError(t, err)
	report, err := verify.Dir(t.Context(), dir, verify.Options{})
	require.NoError(t, err)
	require.Zero(t, report.Findings(), "%+v", report)
}

// TestMountedIndex spoils the index that is a file and leaves the one that the header names.
func TestMountedIndex(t *testing.T) {
	needRoot(t)
	for name, tt := range map[string]struct{ old, new, want string }{
		"another": {`"created":"2026`, `"created":"2025`, "berth/index.json is the index of another disk"},
		"broken":  {`"created":"2026`, `"created":"2O26`, "layer disk is corrupt"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk.img")
			layerdisktest.Disk(t, file, layerdisk.FileSystemEROFS, nil, images...)
			requireClean(t, file)
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, 2, bytes.Count(data, []byte(tt.old)))
			require.NoError(t, os.WriteFile(file, bytes.Replace(data, []byte(tt.old), []byte(tt.new), 1), 0o600))
			report, err := verify.Disk(t.Context(), file, verify.Options{})
			require.NoError(t, err)
			require.Len(t, report.Problems, 1)
			require.Contains(t, report.Problems[0], tt.want)
			require.Equal(t, 1, report.Findings())
		})
	}
}

// TestCannotMount has a superblock that proves the disk, and nothing that the kernel would mount.
func TestCannotMount(t *testing.T) {
	needRoot(t)
	file := filepath.Join(t.TempDir(), "disk.img")
	layerdisktest.Disk(t, file, layerdisk.FileSystemEROFS, nil, images...)
	requireClean(t, file)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0xff}, 1024+12) // the block size
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = verify.Disk(t.Context(), file, verify.Options{})
	require.ErrorContains(t, err, "mount erofs device")
}

// requireClean makes sure at the end of the test that nothing of ours is left attached or mounted.
func requireClean(t *testing.T, file string) {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Cleanup(func() {
		loops, err := device.FindLoops(file)
		require.NoError(t, err)
		require.Empty(t, loops)
		mounts, err := fsmount.Below(tmp)
		require.NoError(t, err)
		require.Empty(t, mounts)
	})
}

func TestDiskRefuses(t *testing.T) {
	_, err := verify.Disk(t.Context(), filepath.Join(t.TempDir(), "nothing"), verify.Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = verify.Disk(t.Context(), "/dev/null", verify.Options{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	file := filepath.Join(t.TempDir(), "zeros")
	require.NoError(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	_, err = verify.Disk(t.Context(), file, verify.Options{})
	require.ErrorIs(t, err, layerdisk.ErrNotLayerDisk)
	_, err = verify.Disk(t.Context(), t.TempDir(), verify.Options{})
	require.ErrorIs(t, err, layerdisk.ErrNotLayerDisk)
}
