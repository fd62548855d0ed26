package buildproc_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// TestLimits reads them where the kernel has them.
func TestLimits(t *testing.T) {
	h := newHub(t, "")
	ref := h.push(t, "a:1", layer(t, "base", 1<<20))
	h.stuck = make(chan struct{})
	b, temp := open(t, func(c *buildproc.Config) { c.MemoryBytes = 1 << 30 })
	ended := make(chan error, 1)
	go func() {
		_, err := b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(ref)}, Device: disk(t, 0)})
		ended <- err
	}()
	<-h.asked
	pid := child(t, temp)
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	require.NoError(t, err)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	require.NoError(t, err)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	if !strings.Contains(string(in), "berth-build-") {
		t.Log("no cgroup can be made here")
	}
	// Controllers or their substitutes: one of them is there.
	require.True(t, strings.Contains(string(limits), strconv.Itoa(1<<30)) || strings.Contains(string(in), "berth-build-"), "%s", limits)
	nice := strings.Fields(string(stat)[strings.LastIndex(string(stat), ")")+2:])[16]
	require.Contains(t, []string{"10", "0"}, nice)
	close(h.stuck)
	require.NoError(t, <-ended)
}

func TestMemoryLimitHolds(t *testing.T) {
	b, _ := open(t, func(c *buildproc.Config) {
		c.MemoryBytes = 64 << 20
		c.Command = []string{"/bin/sh", "-c", `x=$(head -c 500000000 /dev/zero | tr '\0' x); echo "{\"event\":\"contents\",\"contents\":{}}"`}
	})
	_, err := b.Plan(t.Context(), lifecycle.PlanRequest{})
	require.Error(t, err, "a shell variable of 500 MB in 64 MiB")
}

// manyFiles is a layer that is small and takes much memory to build: its tree.
func manyFiles(t *testing.T, count int) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range count {
		name := fmt.Sprintf("%05d-%s", i, strings.Repeat("x", 80))
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}))
	}
	require.NoError(t, w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	require.NoError(t, err)
	return l
}

// A build that needs more memory than it is allowed ends with a reason that says so, whichever way the machine has to
// hold it, and nothing else does: the same daemon builds the next one.
func TestBuildThatNeedsTooMuchMemory(t *testing.T) {
	h := newHub(t, "")
	big, ok := h.push(t, "big:1", manyFiles(t, 250_000)), h.push(t, "ok:1", layer(t, "base", 1<<20))
	b, _ := open(t, func(c *buildproc.Config) { c.MemoryBytes = 256 << 20 })
	_, err := b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(big)}, Device: disk(t, 0)})
	require.ErrorContains(t, err, "needed more than the 256 MiB of memory that it is allowed")
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	_, err = b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(ok)}, Device: disk(t, 0)})
	require.NoError(t, err)
	enough, _ := open(t, func(c *buildproc.Config) { c.MemoryBytes = 1 << 30 })
	_, err = enough.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(big)}, Device: disk(t, 0)})
	require.NoError(t, err, "it is the memory, not the image")
}

// TestNothingOutlives: neither what the process started, nor the process its daemon.
func TestNothingOutlives(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "pid")
	script := fmt.Sprintf(`sleep 1000 & echo $! > %s; echo '{"event":"contents","contents":{}}'; %%s`, mark)
	started := func() bool {
		b, err := os.ReadFile(mark)
		return err == nil && strings.HasSuffix(string(b), "\n")
	}
	gone := func() {
		require.True(t, started())
		b, err := os.ReadFile(mark)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
			return err != nil || strings.Contains(string(state), ") Z ")
		}, 10*time.Second, 10*time.Millisecond)
		require.NoError(t, os.Remove(mark))
	}
	b, _ := open(t, func(c *buildproc.Config) { c.Command = []string{"/bin/sh", "-c", fmt.Sprintf(script, "exit 0")} })
	_, err := b.Plan(t.Context(), lifecycle.PlanRequest{})
	require.NoError(t, err)
	gone()
	b, _ = open(t, func(c *buildproc.Config) { c.Command = []string{"/bin/sh", "-c", fmt.Sprintf(script, "sleep 1000")} })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := b.Plan(ctx, lifecycle.PlanRequest{})
		ended <- err
	}()
	require.Eventually(t, started, 60*time.Second, 10*time.Millisecond, "the process does not start")
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	gone()
}
