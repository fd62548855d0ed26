package stage

import (
	"context"
	"os"
	"path/filepath"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/test/harness/walk"
)

// Node is the node of a random walk, for the walk of what stands on the stage. Device contents begin with a label,
// which says which of Disks is on them.
type Node struct{ *walker }

// Disk is what a label stands for.
type Disk struct {
	Index    *layerdisk.Index
	Identity layerdisk.Identity
}

// NewNode makes a node with one cloud. Volumes whose names begin with builds are not the node's.
func NewNode(w *walk.Walk, cloud string, fake *blockdevtest.Fake, disks map[string]Disk, builds string) *Node {
	dir, err := os.MkdirTemp("/dev/shm", "berth-walk-")
	if err != nil {
		dir = w.TempDir()
	}
	dir, err = filepath.EvalSymlinks(dir)
	require.NoError(w, err)
	n := &walker{
		Walk: w, dir: dir, foreign: map[string]bool{}, builds: builds, holds: map[string]Hold{}, busy: map[string]bool{},
		m: &machine{
			drivers: map[string]*blockdevtest.Fake{cloud: fake},
			indexes: map[string]*layerdisk.Index{}, ids: map[string]layerdisk.Identity{},
		},
	}
	for label, d := range disks {
		n.m.indexes[label], n.m.ids[label] = d.Index, d.Identity
	}
	n.m.mounting, n.m.unmounting = n.mounting, n.unmounting
	n.open()
	return &Node{n}
}

// LabelBytes is what a label may have, DiskBytes what a device needs.
const (
	LabelBytes = labelBytes
	DiskBytes  = machineVolumeBytes
)

// Stager of the process that runs now.
func (n *Node) Stager() *Stager { return n.stager }

// Dead says that the process has died and Restart is due.
func (n *Node) Dead() bool { return n.proc.isDead() }

// Had is how many layers were had from disks.
func (n *Node) Had() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.had
}

// Restart the process, or the node.
func (n *Node) Restart(reboot bool) { n.restart(reboot) }

// ArmCrash has the process die at one of its next calls.
func (n *Node) ArmCrash() { n.armCrash() }

// Pull has a holder that is free acquire a layer in the background, after before.
func (n *Node) Pull(holder, what string, q layerdisk.LayerName, before func(ctx context.Context)) {
	if n.free(holder) {
		n.take(holder, what, q, before)
	}
}

// Release what a holder holds, if it holds anything.
func (n *Node) Release(holder string) { n.releaseOf(holder) }

// RemoveDevice takes a device away, ChangeDevice has one fail, stall or be well again.
func (n *Node) RemoveDevice() { n.removeDevice() }

// ChangeDevice has one fail, stall or be well again.
func (n *Node) ChangeDevice() { n.changeDevice() }

// Check what must hold at all times.
func (n *Node) Check() { n.checkAll() }

// Behave ends all that is wrong with the cloud, its devices and the process.
func (n *Node) Behave() { n.behave() }

// GiveUp lets everything go, and says what is left some time after.
func (n *Node) GiveUp() (left []string) {
	n.mu.Lock()
	for holder := range n.holds {
		delete(n.holds, holder)
		_ = n.stager.Layers.Release(n.Context(), holder)
	}
	n.mu.Unlock()
	for _, d := range n.stager.Disks() {
		_, _ = n.stager.Unstage(n.Context(), d.Name, UnstageOptions{Drain: true})
	}
	for range 3 {
		time.Sleep(time.Hour)
		synctest.Wait()
		n.wakeDevices()
	}
	for _, d := range n.stager.Disks() {
		left = append(left, "disk "+d.Name)
	}
	records, _, err := n.stager.journal.load()
	require.NoError(n, err)
	for _, r := range records {
		left = append(left, "record "+r.Spec.Name)
	}
	for _, m := range n.m.mounts {
		left = append(left, "mount "+m.Target)
	}
	return left
}

// End leaves nothing that waits.
func (n *Node) End() { n.end() }
