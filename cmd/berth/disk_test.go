package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// run runs the command line and returns what it has printed.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func testDisk(t *testing.T) (string, layerdisk.Identity) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	file := filepath.Join(t.TempDir(), "disk.img")
	_, id := layerdisktest.Disk(t, file, layerdisk.FileSystemEROFS, func(layer, dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, layer), bytes.Repeat([]byte("0123456789"), 100*len(layer)), 0o644))
	}, layerdisktest.Image{Reference: "docker.io/library/app:1.0", Layers: []string{"base", "app", "app"}, WithIndex: true},
		layerdisktest.Image{Reference: "docker.io/library/tool:1.0", Layers: []string{"base", "tools"}})
	return file, id
}

func TestInspect(t *testing.T) {
	file, id := testDisk(t)
	out, err := run(t, "inspect", file)
	require.NoError(t, err)
	for _, want := range []string{
		id.UUID, id.IndexDigest.String(), "2 images, 3 layers, 11.72KiB unpacked",
		"1 layer (3.906KiB) in more than one image; without sharing 18.55KiB",
		"docker.io/library/app:1.0   linux/amd64  3       9.766KiB  3.906KiB",
		"0      " + shortDigest(layerdisktest.DiffID("base")) + "  3.906KiB  2       1004B       2",
	} {
		require.Contains(t, out, want)
	}

	out, err = run(t, "inspect", "--json", file)
	require.NoError(t, err)
	var disk inspection
	require.NoError(t, json.Unmarshal([]byte(out), &disk))
	require.Equal(t, id, disk.Identity)
	require.Equal(t, []int{0, 1, 1}, disk.Images[0].Layers)
	require.Equal(t, int64(4000), disk.Images[1].SharedBytes)
	require.Equal(t, sharing{UnpackedBytes: 12000, ImageBytes: 19000, SharedLayers: 1, SharedBytes: 4000}, disk.Sharing)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, info.Size(), disk.DiskBytes)
	require.Len(t, disk.Chains, 4)
	require.NotEmpty(t, disk.Images[0].Index)

	dir := t.TempDir()
	ix, _ := layerdisktest.Tree(t, dir, layerdisk.FileSystemEROFS, nil)
	out, err = run(t, "inspect", dir)
	require.NoError(t, err)
	require.Contains(t, out, ix.UUID)
	require.NotContains(t, out, "\nsize ", "the size of the disk cannot be seen from a mounted directory")

	_, err = run(t, "inspect", os.DevNull)
	require.ErrorIs(t, err, layerdisk.ErrNotLayerDisk)
}

func TestVerify(t *testing.T) {
	file, id := testDisk(t)
	out, err := run(t, "verify", file, "--uuid", id.UUID, "--index-digest", id.IndexDigest.String())
	require.NoError(t, err)
	require.Contains(t, out, "disk "+id.UUID)
	require.Contains(t, out, "layer 2 "+shortDigest(layerdisktest.DiffID("tools"))+": 2 entries, 4.883KiB: ok\n")

	_, err = run(t, "verify", file, "--index-digest", "sha256:"+id.UUID)
	require.ErrorContains(t, err, "--index-digest")
	_, err = run(t, "verify", file, "--uuid", "7d0f5a3e-2c64-4b1b-9a57-c6f2b1c0d9e4")
	require.ErrorIs(t, err, layerdisk.ErrOtherDisk)
}

func TestVerifyFindsDamage(t *testing.T) {
	file, _ := testDisk(t)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	at := bytes.Index(data, []byte("0123456789012345678901234567890123456789"))
	require.Positive(t, at)
	data[at] = 'X'
	require.NoError(t, os.WriteFile(file, data, 0o600))

	out, err := run(t, "verify", file)
	require.Error(t, err, out)
	require.ErrorContains(t, err, "is not as it was built: 1 finding")
	require.Regexp(t, `\n  (base|app|tools): content is [0-9a-f]{64}, want [0-9a-f]{64}\n`, out)

	out, err = run(t, "verify", "--json", file)
	require.Error(t, err)
	require.True(t, json.Valid([]byte(out)))
	require.Contains(t, out, `"attribute": "content"`)
}
