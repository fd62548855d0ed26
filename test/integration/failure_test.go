//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/mounts"
	"berth.dev/berth/test/harness/registry"
)

func (n *node) forgetNamespace(name string) error {
	errs := []error{os.RemoveAll(filepath.Join("/run/containerd/runc", name))}
	groups, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", name))
	errs = append(errs, err, containerd.RemoveCgroup(filepath.Join("/sys/fs/cgroup", name)))
	for _, g := range groups {
		errs = append(errs, containerd.RemoveCgroup(g))
	}
	return errors.Join(errs...)
}

// dropCaches makes the next read go to the device.
func dropCaches(t *testing.T) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o600))
}

// berthd is killed while a container runs from a disk: the container goes on reading what it has not read before, and
// the next berthd serves on with no registry in reach.
func TestKilledWhileContainersRun(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	n.attachAtStart("d", n.build("d", p))
	n.start()
	n.pull(p)
	n.runDetached(p, "running")
	want, err := n.containerd.Exec(t.Context(), "", "running", "md5sum", "/a/large")
	require.NoError(t, err)

	require.NoError(t, n.berthd.Kill())
	dropCaches(t)
	got, err := n.containerd.Exec(t.Context(), "", "running", "md5sum", "/a/large")
	require.NoError(t, err)
	require.Equal(t, want, got)

	n.registry.SetFault(registry.Off)
	n.startBerthd()
	require.Equal(t, "content of top", n.run(p, "new", "cat", "/s/top"))
	got, err = n.containerd.Exec(t.Context(), "", "running", "cat", "/s/top")
	require.NoError(t, err)
	require.Equal(t, "content of top", got)
	require.NoError(t, n.containerd.RemoveContainer(t.Context(), "", "running"))
	require.Zero(t, n.fetched(p))
}

// An orderly stop takes nothing away from containers either, and containerd may restart meanwhile.
func TestStoppedWhileContainersRun(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	n.attachAtStart("d", n.build("d", p))
	n.start()
	n.pull(p)
	n.runDetached(p, "running")
	require.NoError(t, n.berthd.Stop())
	require.NoError(t, n.containerd.Stop())
	dropCaches(t)
	require.NoError(t, n.containerd.Start(t.Context()))
	got, err := n.containerd.Exec(t.Context(), "", "running", "cat", "/s/top")
	require.NoError(t, err)
	require.Equal(t, "content of top", got)
	n.startBerthd()
	n.registry.SetFault(registry.Off)
	require.Equal(t, "content of top", n.run(p, "new", "cat", "/s/top"))
}

// reboot ends every process and takes away every mount and loop device, then starts all again.
func (n *node) reboot() {
	n.Helper()
	require.NoError(n, n.containerd.Close())
	require.NoError(n, n.berthd.Kill())
	require.NoError(n, mounts.UnmountBelow(n.dir))
	require.NoError(n, loop.DetachBelow(n.dir))
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.dir))
	require.NoError(n, err)
	require.Empty(n, left)
	// The state directory is on a tmpfs on real machines.
	require.NoError(n, os.RemoveAll(filepath.Join(n.dir, "c", "state")))
	n.startBerthd()
	require.NoError(n, n.containerd.Start(n.Context()))
}

func TestReboot(t *testing.T) {
	n := newNode(t)
	layers := n.fiveLayers()
	p, lower := n.push("all", layers...), n.push("lower", layers[:3]...)
	n.attachAtStart("d", n.build("d", lower))
	n.start()
	n.pull(p)
	n.runDetached(p, "running")
	n.registry.SetFault(registry.Off)
	n.reboot()
	require.Equal(t, "content of top", n.run(p, "new", "cat", "/s/top"))
	_, err := n.containerd.Ctr(t.Context(), "", "tasks", "start", "--detach", "running")
	require.NoError(t, err)
	out, err := n.containerd.Exec(t.Context(), "", "running", "cat", "/a/setuid")
	require.NoError(t, err)
	require.Equal(t, "again", out)
	n.registry.SetFault(registry.NoFault)
	n.requireSameTree(p)
}

// A disk that was attached by hand and is not in the configuration comes back after a reboot, because snapshots use it.
func TestRebootWithADiskAttachedByHand(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	disk := n.build("d", p)
	n.start()
	_, err := n.berthd.CLI(t.Context(), "attach", disk, "--name", "hand")
	require.NoError(t, err)
	n.pull(p)
	require.Zero(t, n.fetched(p))
	n.registry.SetFault(registry.Off)
	n.reboot()
	require.Equal(t, "content of top", n.run(p, "new", "cat", "/s/top"))
}

// The disk's bytes go away under a mounted file system: pulls fall back to the registry and berth says what is wrong.
func TestDiskVanishes(t *testing.T) {
	n := newNode(t)
	used := n.push("used", n.busybox(), image.EveryKind())
	later := n.push("later", n.busybox(), image.EveryKind(), small("later"))
	disk := n.build("d", used, later)
	n.attachAtStart("d", disk)
	n.start()
	require.NoError(t, os.Truncate(disk, 0))
	dropCaches(t)
	n.pull(later)
	require.Equal(t, len(later.blobs), n.fetched(later), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, "content of later", n.run(later, "c", "cat", "/s/later"))
	d, err := n.status().Disk("d")
	require.NoError(t, err)
	require.NotEmpty(t, d.LastError)
	require.False(t, d.Serving)
	n.requireSameTree(later)
}

// Disks that are not what they should be are refused, each with its reason, and the node works without them.
func TestBadDisksAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, disk *os.File, header layerdisk.Header){
		"header": func(t *testing.T, disk *os.File, _ layerdisk.Header) {
			flip(t, disk, 100)
		},
		"index": func(t *testing.T, disk *os.File, h layerdisk.Header) {
			flip(t, disk, h.IndexOffset+h.IndexBytes/2)
		},
		"superblock": func(t *testing.T, disk *os.File, _ layerdisk.Header) {
			_, err := disk.WriteAt(make([]byte, 128), 1024)
			require.NoError(t, err)
		},
		"truncated": func(t *testing.T, disk *os.File, _ layerdisk.Header) {
			st, err := disk.Stat()
			require.NoError(t, err)
			require.NoError(t, disk.Truncate(st.Size()/2))
		},
		"zeros": func(t *testing.T, disk *os.File, _ layerdisk.Header) {
			_, err := disk.WriteAt(make([]byte, 4096), 0)
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := n.push("all", n.busybox(), small("top"))
			disk := n.build("d", p)
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			require.NoError(t, err)
			header, err := layerdisk.ReadHeader(f)
			require.NoError(t, err)
			spoil(t, f, header)
			require.NoError(t, f.Close())
			n.attachAtStart("bad", disk)
			n.start()
			d, err := n.status().Disk("bad")
			require.NoError(t, err)
			require.False(t, d.Serving)
			require.NotEmpty(t, d.LastError)
			t.Logf("refused: %s", d.LastError)
			n.pull(p)
			require.Equal(t, len(p.blobs), n.fetched(p))
			require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
		})
	}
}

func flip(t *testing.T, f *os.File, offset int64) {
	t.Helper()
	b := make([]byte, 1)
	_, err := f.ReadAt(b, offset)
	require.NoError(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, offset)
	require.NoError(t, err)
}

// Removing the image lets go of the disk, and an idle disk is detached.
func TestRemovalReleasesAndDetaches(t *testing.T) {
	n := newNode(t)
	n.idle = 5 * time.Second // enough to begin the pull on a busy machine
	p := n.push("all", n.fiveLayers()...)
	disk := n.build("d", p)
	n.start()
	_, err := n.berthd.CLI(t.Context(), "attach", disk, "--name", "d")
	require.NoError(t, err)
	n.pull(p)
	require.Zero(t, n.fetched(p))
	n.runDetached(p, "running")
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	out, err := n.containerd.Exec(t.Context(), "", "running", "cat", "/s/top")
	require.NoError(t, err)
	require.Equal(t, "content of top", out)
	d, err := n.status().Disk("d")
	require.NoError(t, err)
	require.NotZero(t, d.Holders, "a running container holds the disk")

	require.NoError(t, n.containerd.RemoveContainer(t.Context(), "", "running"))
	_, err = n.containerd.Ctr(t.Context(), "", "content", "prune", "references") // runs the garbage collection
	require.NoError(t, err)
	n.eventually("the idle disk to be detached", func() error {
		devices, err := loop.Below(n.dir)
		if err != nil {
			return err
		}
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.berthd.Root()))
		if err != nil {
			return err
		}
		if len(devices) > 0 || len(mounts) > 0 {
			return fmt.Errorf("loop devices %v, %d mounts", devices, len(mounts))
		}
		return nil
	})
	_, err = n.status().Disk("d")
	require.Error(t, err, "the detached disk is forgotten")
}

// A disk in use is not detached unless it is drained, and then when its last user goes.
func TestDetach(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.busybox(), small("top"))
	n.attachAtStart("d", n.build("d", p))
	n.start()
	n.pull(p)
	_, err := n.berthd.CLI(t.Context(), "detach", "d")
	require.ErrorContains(t, err, "d")
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	_, err = n.berthd.CLI(t.Context(), "detach", "d", "--drain")
	require.NoError(t, err)
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	require.NoError(t, n.containerd.RemoveImage(t.Context(), "", p.ref))
	n.eventually("the drained disk to be detached", func() error {
		devices, err := loop.Below(n.dir)
		if err != nil {
			return err
		}
		if len(devices) > 0 {
			return fmt.Errorf("loop devices %v", devices)
		}
		return nil
	})
	n.pull(p)
	require.Equal(t, len(p.blobs), n.fetched(p))
}
