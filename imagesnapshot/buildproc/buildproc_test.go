package buildproc_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
)

// program builds berth once for all tests.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-buildproc-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "berth")
	b, err := exec.Command("go", "build", "-o", out, "berth.dev/berth/cmd/berth").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, b)
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if p, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(p))
	}
	os.Exit(code)
}

func open(t *testing.T, change ...func(*buildproc.Config)) (*buildproc.Builder, string) {
	t.Helper()
	berth, err := program()
	require.NoError(t, err)
	temp := filepath.Join(t.TempDir(), "tmp")
	cfg := buildproc.Config{Command: []string{berth}, TempDir: temp, Cgroup: cgroup(t)}
	for _, c := range change {
		c(&cfg)
	}
	b, err := buildproc.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		left, err := os.ReadDir(temp)
		require.NoError(t, err)
		require.Empty(t, left, "temporary files")
	})
	return b, temp
}

// cgroup makes a place for cgroups, if this machine lets us; whether or not, the tests hold.
func cgroup(t *testing.T) string {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(mount, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(mount, "berth-test-"+strconv.Itoa(os.Getpid())+"-"+strings.ReplaceAll(t.Name(), "/", "-"))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { require.NoError(t, os.Remove(dir), "no cgroup is left in it") })
		return dir
	}
	return ""
}

func disk(t *testing.T, size int64) blockdev.Device {
	path := filepath.Join(t.TempDir(), "disk")
	if size > 0 { // a file that exists is only for Reuse
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Truncate(path, size))
	}
	return blockdev.Device{Path: path}
}

func TestPlanAndBuild(t *testing.T) {
	h := newHub(t, "")
	base, app := layer(t, "base", 3<<20), layer(t, "app", 1<<20)
	first, second := h.push(t, "a:1", base), h.push(t, "b:1", base, app)
	b, temp := open(t)
	plan, err := b.Plan(t.Context(), lifecycle.PlanRequest{Spec: h.spec(first, second)})
	require.NoError(t, err)
	require.Len(t, plan.Layers, 2)
	require.Len(t, plan.Chains, 2)
	diffID, err := base.DiffID()
	require.NoError(t, err)
	require.Equal(t, diffID.String(), plan.Layers[0].DiffID.String())
	size, err := base.Size()
	require.NoError(t, err)
	require.Equal(t, size, plan.Layers[0].BlobBytes)
	blob, err := base.Digest()
	require.NoError(t, err)
	require.Zero(t, h.gets[blob.String()], "a plan fetches no layer")

	dev := disk(t, 0)
	var progress []int
	result, err := b.Build(t.Context(), lifecycle.BuildRequest{
		PlanRequest: lifecycle.PlanRequest{Spec: h.spec(first)}, Device: dev,
		Progress: func(p int) { progress = append(progress, p) },
	})
	require.NoError(t, err)
	ix, err := layerdisk.Parse(result.Index)
	require.NoError(t, err)
	require.Equal(t, first, ix.Images[0].Reference)
	require.Equal(t, size, result.FetchedBytes)
	require.NotEmpty(t, progress)
	require.IsIncreasing(t, append([]int{-1}, progress[len(progress)-1]))

	require.Nil(t, ix.Placed)
	list := &accesslist.List{Image: first, Platform: "linux/amd64", Files: []accesslist.FileRange{{DiffID: digest.Digest(diffID.String()), Path: "base", Length: 3 << 20}}}
	placed, err := b.Build(t.Context(), lifecycle.BuildRequest{
		PlanRequest: lifecycle.PlanRequest{Spec: h.spec(first)}, Device: disk(t, 0), AccessLists: []*accesslist.List{list},
	})
	require.NoError(t, err)
	ix, err = layerdisk.Parse(placed.Index)
	require.NoError(t, err)
	require.NotNil(t, ix.Placed, "the process was given the list")
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)

	copied, err := b.Build(t.Context(), lifecycle.BuildRequest{
		PlanRequest: lifecycle.PlanRequest{Spec: h.spec(second)}, Device: disk(t, 0), Donors: []lifecycle.Donor{{Name: "first", Device: dev}},
	})
	require.NoError(t, err)
	require.Equal(t, []int64{3 << 20}, copied.CopiedBytes)
	require.EqualValues(t, 3<<20, copied.ReusedBytes)

	require.NoError(t, os.Truncate(dev.Path, 32<<20))
	result, err = b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(second)}, Device: dev, Reuse: true})
	require.NoError(t, err)
	require.EqualValues(t, 3<<20, result.ReusedBytes)
	require.Equal(t, 2, h.gets[blob.String()], "E-22: fetched once by each build that had nothing to take it from")
}

func TestErrorsKeepTheirClass(t *testing.T) {
	h := newHub(t, "")
	ref := h.push(t, "a:1", layer(t, "base", 3<<20))
	b, _ := open(t)
	build := func(dev blockdev.Device, reuse bool, images ...string) error {
		_, err := b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(images...)}, Device: dev, Reuse: reuse})
		return err
	}
	err := build(disk(t, 0), false, h.host()+"/none:1")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	err = build(disk(t, 1<<20), true, ref)
	require.True(t, errdefs.IsDataLoss(err), "%v", err)
	err = build(disk(t, 1<<20), false, ref)
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	_, err = b.Plan(t.Context(), lifecycle.PlanRequest{Spec: h.spec("oci:5000/a:1")})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "no such file", "a reference never names files of this machine")
	bad, _ := open(t, func(c *buildproc.Config) { c.Command = []string{"/bin/sh", "-c", "echo trouble >&2; exit 3"} })
	_, err = bad.Plan(t.Context(), lifecycle.PlanRequest{Spec: h.spec(ref)})
	require.ErrorContains(t, err, "trouble")
	garbage, _ := open(t, func(c *buildproc.Config) { c.Command = []string{"/bin/sh", "-c", "echo garbage; sleep 1000"} })
	_, err = garbage.Plan(t.Context(), lifecycle.PlanRequest{Spec: h.spec(ref)})
	require.ErrorContains(t, err, "read output")
}

func TestOpenClearsLeftovers(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "build-123")
	require.NoError(t, os.MkdirAll(left, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(left, "config.json"), []byte("secret"), 0o600))
	other := filepath.Join(dir, "mine")
	require.NoError(t, os.WriteFile(other, nil, 0o600))
	_, err := buildproc.Open(buildproc.Config{Command: []string{"berth"}, TempDir: dir})
	require.NoError(t, err)
	require.NoDirExists(t, left)
	require.FileExists(t, other)
	_, err = buildproc.Open(buildproc.Config{TempDir: dir})
	require.True(t, errdefs.IsInvalidArgument(err))
	_, err = buildproc.Open(buildproc.Config{Command: []string{"berth"}, TempDir: dir, CPUWeight: 20000})
	require.True(t, errdefs.IsInvalidArgument(err))
}
