package layerdisktest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/attrs"
)

// Tree makes the directory of a whole layer disk, as it is when mounted, below an existing empty directory: layers
// filled by populate, which gets a layer's name and its empty directory, listings, and the sealed index, which it
// returns with its encoded bytes. Times are cut to whole seconds, because mke2fs -d does that too.
func Tree(tb testing.TB, dir, fileSystem string, populate func(layer, dir string), images ...Image) (*layerdisk.Index, []byte) {
	tb.Helper()
	ix := Index(fileSystem, images...)
	require.NoError(tb, os.MkdirAll(filepath.Join(dir, layerdisk.ListingsDir), 0o755))
	names := make(map[string]bool)
	for _, img := range images {
		for _, name := range img.Layers {
			if names[name] {
				continue
			}
			names[name] = true
			number := slices.IndexFunc(ix.Layers, func(l layerdisk.Layer) bool { return l.DiffID == DiffID(name) })
			layerDir := filepath.Join(dir, layerdisk.LayerDir(number))
			require.NoError(tb, os.MkdirAll(layerDir, 0o755))
			if populate != nil {
				populate(name, layerDir)
			}
			cutTimes(tb, layerDir)
			entries, err := attrs.FromDir(tb.Context(), layerDir)
			require.NoError(tb, err)
			stored, digest, err := attrs.Store(slices.Values(entries))
			require.NoError(tb, err)
			require.NoError(tb, os.WriteFile(filepath.Join(dir, layerdisk.ListingPath(number)), stored, 0o644))
			ix.Layers[number].Attributes = digest
			ix.Layers[number].Inodes, ix.Layers[number].UnpackedBytes = attrs.Totals(entries)
		}
	}
	encoded, err := layerdisk.Seal(ix)
	require.NoError(tb, err)
	require.NoError(tb, os.WriteFile(filepath.Join(dir, layerdisk.IndexPath), encoded, 0o644))
	return ix, encoded
}

func cutTimes(tb testing.TB, dir string) {
	tb.Helper()
	require.NoError(tb, filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(name, &st)); err != nil {
			return err
		}
		whole := unix.Timespec{Sec: st.Mtim.Sec}
		return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{whole, whole}, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

// Disk makes a real layer disk in a new file, as Tree does, with mkfs.erofs or mkfs.ext4; it skips the test if that
// is not installed. The index lies behind the file system.
func Disk(tb testing.TB, file, fileSystem string, populate func(layer, dir string), images ...Image) (*layerdisk.Index, layerdisk.Identity) {
	tb.Helper()
	dir := tb.TempDir()
	ix, encoded := Tree(tb, dir, fileSystem, populate, images...)
	var cmd *exec.Cmd
	switch fileSystem {
	case layerdisk.FileSystemEROFS:
		cmd = exec.CommandContext(tb.Context(), "mkfs.erofs", "-x1", "-U", ix.UUID, file, dir)
	case layerdisk.FileSystemExt4:
		cmd = exec.CommandContext(tb.Context(), "mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-U", ix.UUID, "-d", dir, file, "64m")
	default:
		tb.Fatalf("unknown file system %q", fileSystem)
	}
	if cmd.Err != nil {
		tb.Skipf("needs %s: %v", cmd.Path, cmd.Err)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(tb, err, "%s", out)
	return ix, Finish(tb, file, ix, encoded)
}

// Finish appends the index to the file with a file system of the right UUID and writes the header.
func Finish(tb testing.TB, file string, ix *layerdisk.Index, encoded []byte) layerdisk.Identity {
	tb.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	require.NoError(tb, err)
	defer func() { require.NoError(tb, f.Close()) }()
	info, err := f.Stat()
	require.NoError(tb, err)
	const block = 4096
	offset := (info.Size() + block - 1) / block * block
	size := (offset + int64(len(encoded)) + block - 1) / block * block
	_, err = f.WriteAt(encoded, offset)
	require.NoError(tb, err)
	require.NoError(tb, f.Truncate(size))
	header, err := layerdisk.NewHeader(ix, encoded, offset, size).MarshalBinary()
	require.NoError(tb, err)
	_, err = f.WriteAt(header, 0)
	require.NoError(tb, err)
	return layerdisk.Identity{UUID: ix.UUID, IndexDigest: layerdisk.NewHeader(ix, encoded, offset, size).IndexDigest}
}
