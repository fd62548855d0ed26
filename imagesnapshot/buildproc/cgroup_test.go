package buildproc_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

const envService = "BERTH_TEST_SERVICE"

// TestServiceProcess is the daemon of TestMoveToSubgroup.
func TestServiceProcess(t *testing.T) {
	service := os.Getenv(envService)
	if service == "" {
		t.Skip("is run by TestMoveToSubgroup")
	}
	for range 2 { // again, as when systemd has done it already
		dir, err := buildproc.MoveToSubgroup("")
		require.NoError(t, err)
		require.Equal(t, service, dir)
	}
	procs, err := os.ReadFile(filepath.Join(service, "daemon", "cgroup.procs"))
	require.NoError(t, err)
	require.Contains(t, strings.Fields(string(procs)), fmt.Sprint(os.Getpid()))
	left, err := os.ReadFile(filepath.Join(service, "cgroup.procs"))
	require.NoError(t, err)
	require.Empty(t, string(left), "the service's own group has processes")
	have, err := os.ReadFile(filepath.Join(service, "cgroup.controllers"))
	require.NoError(t, err)
	given, err := os.ReadFile(filepath.Join(service, "cgroup.subtree_control"))
	require.NoError(t, err)
	for _, controller := range []string{"cpu", "memory"} {
		require.Equal(t, strings.Contains(string(have), controller), strings.Contains(string(given), controller), controller)
	}

	h := newHub(t, "")
	ref := h.push(t, "a:1", layer(t, "base", 1<<20))
	h.stuck = make(chan struct{})
	b, temp := open(t, func(c *buildproc.Config) { c.Cgroup = service })
	ended := make(chan error, 1)
	go func() {
		_, err := b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(ref)}, Device: disk(t, 0)})
		ended <- err
	}()
	<-h.asked
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", child(t, temp)))
	require.NoError(t, err)
	require.Contains(t, string(in), filepath.Base(service)+"/berth-build-", "beside the daemon")
	close(h.stuck)
	require.NoError(t, <-ended)
	groups, err := filepath.Glob(filepath.Join(service, "berth-*"))
	require.NoError(t, err)
	require.Empty(t, groups)
}

// TestMoveToSubgroup runs a daemon in a cgroup that is left to it as systemd leaves one to a service, on whatever
// hierarchy of version 2 this machine has. Where that has no controllers, builds have a group and other limits.
func TestMoveToSubgroup(t *testing.T) {
	service := cgroup(t)
	if service == "" {
		t.Skip("no cgroups of version 2 can be made here")
	}
	require.NoError(t, unix.Setxattr(service, "trusted.delegate", []byte("1"), 0))
	dir, err := os.Open(service)
	require.NoError(t, err)
	defer dir.Close()
	daemon := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestServiceProcess$", "-test.v")
	daemon.Env = append(os.Environ(), envService+"="+service)
	daemon.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := daemon.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestServiceProcess")
	require.NoError(t, os.Remove(filepath.Join(service, "daemon")), "systemd takes it away with the service")
}

// A process whose cgroup is nobody's to divide stays where it is.
func TestMoveToSubgroupWithoutDelegation(t *testing.T) {
	before, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	_, err = buildproc.MoveToSubgroup("")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	after, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
}
