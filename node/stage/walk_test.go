package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/retry"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/test/harness/walk"
)

// walker takes a Stager on clouds that misbehave through random steps, and knows what must come of them. What is going
// on goes on in the background; the process may die at any of its calls.
type walker struct {
	*walk.Walk
	m     *machine
	dir   string
	specs []Spec
	// labels are of the disks that the specs mean, by the name of the spec; layers of each disk by its label.
	labels map[string]string
	layers map[string][]string
	// foreign volumes that stay attached, by driver and ID.
	foreign map[string]bool
	boots   int
	// builds, if not empty, begins the names of volumes that the builds of image snapshots have in the same storage.
	builds string

	stager *Stager
	proc   *process
	calls  sync.WaitGroup

	mu sync.Mutex // guards what follows
	// holds are what containerd knows that it holds; a holder that is busy is not used again before it is done.
	holds map[string]Hold
	busy  map[string]bool
	// had counts the layers that were had from disks.
	had int
}

// TestWalk goes through the life of a node with two clouds that misbehave in all ways, in ways that change. At all
// times: no wrong disk is mounted, no layer is served from a disk that is not that of the layer, no disk that is held
// is unmounted or forgotten, nothing is attached or made that the journal does not have, and what is others' stays. In
// the end, when the clouds behave again, every disk that can serve does, and when all are given up nothing is left.
func TestWalk(t *testing.T) {
	walk.Run(t, 12000, 1000, func(w *walk.Walk) {
		n := newWalker(w)
		defer n.end()
		choices := n.choices()
		for range w.Steps {
			w.Step(choices)
			n.look()
		}
		n.converge()
		n.giveUp()
		require.Greater(w, n.had, w.Steps/100, "a walk on which nothing is had from disks shows nothing")
	})
}

func newWalker(w *walk.Walk) *walker {
	dir, err := os.MkdirTemp("/dev/shm", "berth-walk-") // syncing costs nothing there
	if err != nil {
		dir = w.TempDir()
	}
	dir, err = filepath.EvalSymlinks(dir)
	require.NoError(w, err)
	n := &walker{
		Walk: w, dir: dir, labels: map[string]string{}, layers: map[string][]string{}, foreign: map[string]bool{},
		holds: map[string]Hold{}, busy: map[string]bool{},
		m: &machine{
			drivers: map[string]*blockdevtest.Fake{"one": blockdevtest.NewFake(6), "two": blockdevtest.NewFake(0)},
			indexes: map[string]*layerdisk.Index{}, ids: map[string]layerdisk.Identity{},
		},
	}
	n.m.mounting, n.m.unmounting = n.mounting, n.unmounting
	for driver, label := range map[string]string{"one": "a", "two": "b"} {
		for i := range sources - 1 {
			n.source(driver, fmt.Sprintf("%s%d", label, i))
		}
	}
	// The same disk on both clouds.
	n.source("one", "common")
	n.source("two", "common")
	slices.SortFunc(n.specs, func(a, b Spec) int { return compare(a.Name, b.Name) })
	n.others()
	n.open()
	return n
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// What each cloud has besides what we make: disks, each as a volume and as a volume snapshot, and volumes of others.
const (
	sources      = 5
	otherVolumes = 2
)

// source makes a volume with a disk, and a volume snapshot of it.
func (n *walker) source(driver, label string) {
	fake := n.m.drivers[driver]
	if n.m.indexes[label] == nil {
		n.layers[label] = []string{"shared", label}
		ix := layerdisktest.Index(layerdisk.FileSystemEROFS, layerdisktest.Image{Reference: "example.org/" + label + ":1", Layers: n.layers[label]})
		encoded, err := layerdisk.Seal(ix)
		require.NoError(n, err)
		n.m.indexes[label], n.m.ids[label] = ix, layerdisk.NewHeader(ix, encoded, machineVolumeBytes, 1<<20).Identity()
	}
	v, err := fake.CreateVolume(n.Context(), blockdev.CreateVolumeRequest{Name: "disk-" + label, SizeBytes: machineVolumeBytes})
	require.NoError(n, err)
	dev, err := fake.Attach(n.Context(), v.ID, blockdev.AttachOptions{})
	require.NoError(n, err)
	c, err := fake.OpenDevice(dev, true)
	require.NoError(n, err)
	_, err = c.WriteAt([]byte(label), 0)
	require.NoError(n, err)
	require.NoError(n, fake.Detach(n.Context(), v.ID))
	s, err := fake.CreateVolumeSnapshot(n.Context(), "snapshot-"+label, v.ID)
	require.NoError(n, err)
	for _, spec := range []Spec{
		{Name: driver + "-" + label + "-v", Driver: driver, VolumeID: v.ID, Expect: n.m.ids[label]},
		{Name: driver + "-" + label + "-s", Driver: driver, VolumeSnapshotID: s.ID, Expect: n.m.ids[label]},
	} {
		n.specs = append(n.specs, spec)
		n.labels[spec.Name] = label
	}
}

// others are volumes of others, attached and not, and a name that looks like ours.
func (n *walker) others() {
	for driver, fake := range n.m.drivers {
		for i, name := range []string{"other", "berth-other"} {
			v, err := fake.CreateVolume(n.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: machineVolumeBytes})
			require.NoError(n, err)
			if i == 0 {
				_, err = fake.Attach(n.Context(), v.ID, blockdev.AttachOptions{})
				require.NoError(n, err)
				n.foreign[driver+"/"+v.ID] = true
			}
		}
	}
}

// open starts a process.
func (n *walker) open() {
	n.Helper()
	n.proc = &process{machine: n.m}
	n.proc.ctx, n.proc.kill = context.WithCancel(context.Background())
	cfg := Config{Root: n.dir, Drivers: map[string]blockdev.Attacher{}, IdleTimeout: 20 * time.Minute, AttachWait: 5 * time.Second}
	for name, fake := range n.m.drivers {
		cfg.Drivers[name] = retry.Around(client{n.proc, name, fake})
	}
	var err error
	n.stager, err = open(cfg, n.proc)
	require.NoError(n, err)
	n.stager.boot = fmt.Sprint("boot ", n.boots)
	proc := n.proc
	n.stager.crash = func(string) {
		if proc.alive(false) != nil || proc.alive(true) != nil {
			runtime.Goexit()
		}
	}
	stager := n.stager
	context.AfterFunc(proc.ctx, func() { // nothing of a dead process goes on
		stager.mu.Lock()
		defer stager.mu.Unlock()
		if stager.stop != nil {
			stager.stop()
		}
	})
	ctx, cancel := context.WithTimeout(proc.ctx, time.Minute)
	defer cancel()
	if err := n.stager.Restore(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		require.NoError(n, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var holds []Hold
	for _, h := range n.holds {
		holds = append(holds, h)
	}
	missing, err := n.stager.Reconcile(n.Context(), holds)
	require.NoError(n, err)
	for _, h := range missing {
		n.Break("the journal has lost disk %s, layer %d of which is held by %s", h.DiskUUID, h.LayerNumber, h.Holder)
	}
}

// restart ends the process, if it is not dead yet, and starts another one.
func (n *walker) restart(reboot bool) {
	n.proc.die()
	n.calls.Wait()
	require.NoError(n, n.stager.Close())
	n.mu.Lock()
	clear(n.busy)
	n.mu.Unlock()
	if reboot {
		n.boots++
		n.m.reboot()
	}
	n.open()
}

// end leaves nothing that waits.
func (n *walker) end() {
	n.proc.die()
	n.wakeDevices()
	n.calls.Wait()
	_ = n.stager.Close()
	n.wakeDevices()
	_ = os.RemoveAll(n.dir)
}

func (n *walker) wakeDevices() {
	for _, fake := range n.m.drivers {
		fake.Misbehave(blockdevtest.Misbehaviour{})
		for _, id := range fake.Inventory().Attached {
			fake.SetDevice(id, blockdevtest.DeviceWell)
		}
	}
}

// background makes a call of the process.
func (n *walker) background(what string, call func(ctx context.Context, s *Stager) error) {
	n.Note("%s", what)
	proc, stager := n.proc, n.stager
	n.calls.Go(func() {
		err := call(proc.ctx, stager)
		if !proc.isDead() {
			n.Note("  %s: %v", what, err)
		}
	})
}

// look checks what must hold at all times, and starts another process if this one has died.
func (n *walker) look() {
	n.Helper()
	synctest.Wait()
	if n.proc.isDead() {
		n.Note("died")
		n.restart(n.Chance(0.2))
		synctest.Wait()
	}
	n.checkAll()
	n.Stand()
}
