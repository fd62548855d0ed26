package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/catalogtest"
)

func TestCatalog(t *testing.T) {
	file, id := testDisk(t)
	dir := filepath.Join(t.TempDir(), "catalog")
	entries := func() map[string]catalog.Entry {
		d, err := openCatalog(dir)
		require.NoError(t, err)
		changes, err := d.Watch(t.Context())
		require.NoError(t, err)
		found, problems := catalogtest.Until(t, changes)
		require.Empty(t, problems)
		return found
	}
	out, err := run(t, "catalog", "add", file, "--directory", dir, "--expires", "1h")
	require.NoError(t, err)
	require.Equal(t, "disk: added as disk\n", out)
	_, err = run(t, "catalog", "add", file, "--directory", dir, "--name", "Base Images", "--id", "base", "--driver", "cloud", "--volume-snapshot", "s-1")
	require.NoError(t, err)

	found := entries()
	require.Len(t, found, 2)
	disk, base := found["disk"], found["base"]
	require.Equal(t, catalog.Source{Driver: "loop", VolumeID: file}, disk.Source)
	require.Equal(t, "1h0m0s", disk.Expires.Sub(disk.Created).String())
	require.Equal(t, "Base Images", base.Name)
	require.Equal(t, catalog.Source{Driver: "cloud", VolumeSnapshotID: "s-1"}, base.Source)
	require.True(t, base.Expires.IsZero())
	_, identity, err := base.Parse()
	require.NoError(t, err)
	require.Equal(t, id, identity)

	_, err = run(t, "catalog", "remove", "--directory", dir, "disk", "base", "never-there")
	require.NoError(t, err)
	require.Empty(t, entries())

	_, err = run(t, "catalog", "add", file)
	require.ErrorContains(t, err, `"directory" not set`)
	_, err = run(t, "catalog", "add", file, "--directory", dir, "--id", "a/b")
	require.ErrorContains(t, err, "ID")
	none := filepath.Join(t.TempDir(), "none")
	require.NoError(t, os.WriteFile(none, make([]byte, 8192), 0o600))
	_, err = run(t, "catalog", "add", none, "--directory", dir)
	require.ErrorContains(t, err, "not a berth layer disk")
	require.Empty(t, entries())
}
