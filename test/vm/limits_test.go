//go:build vm

package vm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Builds under the limits of cgroups, on a machine that has version 2 with its controllers: berthd in a group of its
// own, a build beside it with its share of the processors and its bound on memory. The kernel ends a build that meets
// the bound, and nothing else: the image snapshot says why, and berthd builds the next one.
func TestBuildLimits(t *testing.T) {
	n := newNode(t)
	p := n.app("top")
	const service = "/sys/fs/cgroup/service"
	n.shell("modprobe loop; echo '+cpu +memory' > /sys/fs/cgroup/cgroup.subtree_control")
	n.start(fmt.Sprintf("[image_snapshots]\nbuild_cgroup = %q\nbuild_memory_mib = 256\nbuild_cpu_weight = 20\nmin_size_gib = 1\n", service))
	require.Equal(t, strconv.Itoa(n.berthdPID), strings.TrimSpace(n.shell("cat "+service+"/daemon/cgroup.procs")))
	create := fmt.Sprintf("berth image-snapshot create %%s --image %s --size 1 --reuse-layers=false --plain-http %s", p.ref, strings.SplitN(p.ref, "/", 2)[0])

	// begun returns with a build in the midst of fetching.
	begun := func(name string) (group string) {
		n.registry.Hold()
		n.shell(fmt.Sprintf(create, name))
		n.eventually("the build to ask the registry", func() error {
			if n.registry.Requests() == 0 {
				return errors.New("it has not begun: " + n.shell("berth image-snapshot events "+name))
			}
			return nil
		})
		return strings.TrimSpace(n.shell("echo " + service + "/berth-build-*"))
	}
	awaited := func(name, want string) {
		n.eventually(name+" to be "+want, func() error {
			if out := n.shell("berth image-snapshot get " + name); !strings.Contains(out, want) {
				return errors.New(out)
			}
			return nil
		})
	}

	group := begun("killed")
	require.Equal(t, "20 268435456 0", strings.Join(strings.Fields(n.shell(fmt.Sprintf("cd %s; cat cpu.weight memory.max memory.swap.max 2>/dev/null || echo 0", group))), " "))
	require.NotEmpty(t, strings.TrimSpace(n.shell("cat "+group+"/cgroup.procs")))
	// Memory that a build could only get by having much to do: what it may have is taken away instead.
	n.shell("echo 4M > " + group + "/memory.max")
	awaited("killed", "more than the 256 MiB of memory that it is allowed")
	require.Contains(t, n.shell("berth image-snapshot get killed"), "Failed (BuildFailed)")
	require.Contains(t, n.shell("dmesg"), "Memory cgroup out of memory")
	require.NotEmpty(t, n.shell(fmt.Sprintf("cat /proc/%d/stat", n.berthdPID)), "berthd lives")

	n.registry.Resume()
	n.shell(fmt.Sprintf(create, "next") + " --wait")
	awaited("next", "Available")
	require.Equal(t, service+"/berth-build-*", strings.TrimSpace(n.shell("echo "+service+"/berth-build-*")), "groups of builds that have ended")
}
