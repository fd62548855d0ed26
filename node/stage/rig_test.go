package stage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

func TestMain(m *testing.M) {
	// Hundreds of disks come and go here; what is logged about them helps nobody.
	if err := log.SetLevel("panic"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// node is a machine with the real kernel and the loop driver, that can crash and reboot.
type node struct {
	t      *testing.T
	dir    string
	driver *loopdev.Driver
	*Stager
	config Config
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	n := &node{t: t, dir: dir}
	n.driver, err = loopdev.Open(filepath.Join(dir, "loop"))
	require.NoError(t, err)
	n.config = Config{Root: dir, Drivers: map[string]blockdev.Attacher{"loop": n.driver}}
	t.Cleanup(n.cleanUp)
	n.open()
	return n
}

func (n *node) open() {
	n.t.Helper()
	var err error
	n.Stager, err = Open(n.config)
	require.NoError(n.t, err)
}

// start restores and says that nothing is held but holds.
func (n *node) start(holds ...Hold) {
	n.t.Helper()
	require.NoError(n.t, n.Restore(n.t.Context()))
	_, err := n.Reconcile(n.t.Context(), holds)
	require.NoError(n.t, err)
}

// crash forgets all that is in memory. What the kernel has stays.
func (n *node) crash() {
	n.t.Helper()
	require.NoError(n.t, n.Close())
	n.open()
}

// reboot is a crash after which nothing is mounted or attached.
func (n *node) reboot() {
	n.t.Helper()
	require.NoError(n.t, n.Close())
	n.clearKernel()
	n.open()
}

func (n *node) clearKernel() {
	n.t.Helper()
	mounts, err := fsmount.Below(n.dir)
	require.NoError(n.t, err)
	for _, m := range mounts {
		require.NoError(n.t, fsmount.Unmount(m.Target))
	}
	attached, err := n.driver.Attached(context.Background())
	require.NoError(n.t, err)
	for _, dev := range attached {
		loop, ok, err := device.LoopAt(dev.Path)
		require.NoError(n.t, err)
		require.True(n.t, ok)
		require.NoError(n.t, untilFree(context.Background(), func() error {
			return device.DetachLoop(context.Background(), loop)
		}))
	}
}

// left lists what is there besides the files of volumes.
func (n *node) left() (left []string) {
	n.t.Helper()
	mounts, err := fsmount.Below(n.dir)
	require.NoError(n.t, err)
	for _, m := range mounts {
		left = append(left, "mount "+m.Target)
	}
	attached, err := n.driver.Attached(context.Background())
	require.NoError(n.t, err)
	for id, dev := range attached {
		left = append(left, "device "+id+" "+dev.Path)
	}
	entries, err := os.ReadDir(filepath.Join(n.dir, disksName))
	require.NoError(n.t, err)
	for _, e := range entries {
		left = append(left, "directory "+e.Name())
	}
	records, bad, err := n.journal.load()
	require.NoError(n.t, err)
	require.Empty(n.t, bad)
	for _, rec := range records {
		left = append(left, "record "+rec.Spec.Name)
	}
	volumes, err := n.driver.ListVolumes(context.Background())
	require.NoError(n.t, err)
	for _, v := range volumes {
		if strings.HasPrefix(v.Name, "berth-") {
			left = append(left, "volume "+v.Name)
		}
	}
	return left
}

func (n *node) cleanUp() {
	require.NoError(n.t, n.Close())
	n.clearKernel()
	require.NoError(n.t, n.driver.Close())
}

// disk makes a layer disk with an image of the layers in a file of the user's. Each layer has a file with its name.
func (n *node) disk(name, fs string, layers ...string) (path string, id layerdisk.Identity) {
	n.t.Helper()
	path = filepath.Join(n.dir, name+".img")
	_, id = layerdisktest.Disk(n.t, path, fs, func(layer, dir string) {
		require.NoError(n.t, os.WriteFile(filepath.Join(dir, "name"), []byte(layer), 0o644))
	}, layerdisktest.Image{Reference: "example.org/" + name + ":1", Layers: layers})
	return path, id
}

func chain(layers ...string) layerdisk.LayerName {
	return layerdisk.LayerName{ChainID: layerdisktest.ChainID(layers...)}
}

func (n *node) stage(name, path string) DiskStatus {
	n.t.Helper()
	status, err := n.Stage(n.t.Context(), Spec{Name: name, Driver: "loop", VolumeID: path})
	require.NoError(n.t, err)
	return status
}

// acquire wants the layer and reads it.
func (n *node) acquire(holder string, q layerdisk.LayerName, layer string) Held {
	n.t.Helper()
	held, err := n.Layers.Acquire(n.t.Context(), holder, q)
	require.NoError(n.t, err)
	got, err := os.ReadFile(filepath.Join(held.Dir, "name"))
	require.NoError(n.t, err)
	require.Equal(n.t, layer, string(got))
	return held
}

// soon waits for a condition that needs the background.
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, 2*time.Millisecond, what)
}

func (n *node) status(name string) DiskStatus {
	n.t.Helper()
	for _, st := range n.Disks() {
		if st.Name == name {
			return st
		}
	}
	return DiskStatus{}
}

func (n *node) miss(holder string, q layerdisk.LayerName) *MissError {
	n.t.Helper()
	_, err := n.Layers.Acquire(n.t.Context(), holder, q)
	var miss *MissError
	require.ErrorAs(n.t, err, &miss, fmt.Sprint(err))
	return miss
}
