package stage

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/layerdisk"
)

// crashing runs do in a goroutine that ends, as at a crash, when the point is reached. It says whether it was.
func (n *node) crashing(point string, do func()) bool {
	n.t.Helper()
	var reached atomic.Bool
	n.Stager.crash = func(at string) {
		// From then on nobody gets any further, the background included.
		if at == point || reached.Load() {
			reached.Store(true)
			runtime.Goexit()
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	<-done
	return reached.Load()
}

// points at which a test crashes: around each write of the journal. Right before a write, the step before it has been
// done; right after it, the step that it announces has not.
func points(steps ...State) (all []string) {
	for _, step := range steps {
		all = append(all, "before "+string(step), "after "+string(step))
	}
	return all
}

// restarts are what can happen between a crash and the next start.
func restarts() map[string]func(*node) {
	return map[string]func(*node){"crash": (*node).crash, "reboot": (*node).reboot}
}

// source makes what is staged: a disk of the user's, or a volume snapshot.
func (n *node) source(snapshot bool) (Spec, layerdisk.Identity) {
	n.t.Helper()
	path, id := n.disk("one", "erofs", "a", "b")
	if !snapshot {
		return Spec{Name: "one", Driver: "loop", VolumeID: path}, id
	}
	data, err := os.ReadFile(path)
	require.NoError(n.t, err)
	_, err = n.driver.CreateVolume(n.t.Context(), blockdev.CreateVolumeRequest{Name: "built", SizeBytes: int64(len(data))})
	require.NoError(n.t, err)
	require.NoError(n.t, os.WriteFile(filepath.Join(n.dir, "loop/volumes/built/disk"), data, 0o600))
	_, err = n.driver.CreateVolumeSnapshot(n.t.Context(), "frozen", "built")
	require.NoError(n.t, err)
	return Spec{Name: "one", Driver: "loop", VolumeSnapshotID: "frozen"}, id
}

// forEachCrash runs a test for both kinds of source, both kinds of restart and the points. Each point must be reached,
// or the test tests nothing.
func forEachCrash(t *testing.T, all []string, test func(t *testing.T, snapshot bool, point string, restart func(*node)) (crashed bool)) {
	t.Helper()
	reached := make(map[string]bool)
	for _, snapshot := range []bool{false, true} {
		for how, restart := range restarts() {
			for _, point := range all {
				t.Run(fmt.Sprintf("snapshot=%t/%s/%s", snapshot, how, point), func(t *testing.T) {
					if test(t, snapshot, point, restart) {
						reached[point] = true
					}
				})
			}
		}
	}
	for _, point := range all {
		require.True(t, reached[point], point)
	}
}

func TestCrashWhileStaging(t *testing.T) {
	forEachCrash(t, points(StateWanted, StateCreating, StateAttaching, StateMounting, StateIdle), func(t *testing.T, snapshot bool, point string, restart func(*node)) bool {
		n := newNode(t)
		n.start()
		spec, id := n.source(snapshot)
		crashed := n.crashing(point, func() { _, _ = n.Stage(t.Context(), spec) })
		restart(n)
		n.start()
		if crashed && point == "before wanted" {
			require.Empty(t, n.left(), "what was not journalled was not begun")
			require.Empty(t, n.Disks())
		} else {
			n.acquire("h", chain("a", "b"), "b")
			require.Equal(t, id.UUID, n.status("one").UUID)
			require.Len(t, n.Disks(), 1)
			require.NoError(t, n.Layers.Release(t.Context(), "h"))
			n.expectOne(snapshot)
			_, err := n.Unstage(t.Context(), "one", UnstageOptions{})
			require.NoError(t, err)
			require.Empty(t, n.left())
		}
		return crashed
	})
}

// expectOne says that there is one of everything, not more.
func (n *node) expectOne(snapshot bool) {
	n.t.Helper()
	want := 4
	if snapshot {
		want = 5 // the volume
	}
	require.Len(n.t, n.left(), want)
}

func TestCrashWhileUnstaging(t *testing.T) {
	forEachCrash(t, append(points(StateUnmounting, StateDetaching, StateDeleting), "before forget", "after forget"), func(t *testing.T, snapshot bool, point string, restart func(*node)) bool {
		n := newNode(t)
		n.start()
		spec, _ := n.source(snapshot)
		_, err := n.Stage(t.Context(), spec)
		require.NoError(t, err)
		crashed := n.crashing(point, func() { _, _ = n.Unstage(t.Context(), "one", UnstageOptions{}) })
		restart(n)
		n.start()
		if crashed && point == "before "+string(StateUnmounting) {
			n.acquire("h", chain("a", "b"), "b")
			n.expectOne(snapshot)
		} else {
			require.Empty(t, n.left())
			require.Empty(t, n.Disks())
		}
		return crashed
	})
}

// A start that crashes is followed by one that does not.
func TestCrashWhileRestoring(t *testing.T) {
	forEachCrash(t, points(StateAttaching, StateMounting, StateIdle), func(t *testing.T, snapshot bool, point string, restart func(*node)) bool {
		n := newNode(t)
		n.start()
		spec, id := n.source(snapshot)
		_, err := n.Stage(t.Context(), spec)
		require.NoError(t, err)
		restart(n)
		crashed := n.crashing(point, func() { n.raiseOnly() })
		restart(n)
		n.start(Hold{"h", id.UUID, 1})
		n.acquire("h", chain("a", "b"), "b")
		n.expectOne(snapshot)
		return crashed
	})
}

// raiseOnly does what Restore lets the background do, in this goroutine.
func (n *node) raiseOnly() {
	records, bad, err := n.journal.load()
	if err != nil || len(bad) > 0 || len(records) != 1 {
		n.t.Errorf("journal has %d records, %v, %v", len(records), bad, err)
		return
	}
	d := &disk{rec: records[0], journalled: true, key: newKey()}
	n.mu.Lock()
	n.fleet.add(d)
	n.mu.Unlock()
	if err := n.keeper.raising.raise(n.t.Context(), d); err != nil {
		n.t.Error(err)
	}
}

func TestReboot(t *testing.T) {
	n := newNode(t)
	n.start()
	paths := map[string]string{}
	for _, name := range []string{"one", "two", "three"} {
		paths[name], _ = n.disk(name, "erofs", name)
		n.stage(name, paths[name])
		n.acquire(name, chain(name), name)
	}
	// Device names are given in another order after the reboot.
	one := n.uuid("one")
	n.reboot()
	n.start(Hold{"one", one, 0})
	for _, name := range []string{"one", "two", "three"} {
		n.acquire(name, chain(name), name)
	}
	require.NoError(t, n.Close())
	n.clearKernel()

	// One disk is gone, one is another's now: the others come back, these are reported, and nothing stops.
	require.NoError(t, os.Remove(paths["one"]))
	require.NoError(t, os.Rename(paths["two"], paths["two"]+".old"))
	data, err := os.ReadFile(paths["three"])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(paths["two"], data, 0o600))
	n.open()
	n.start()
	n.acquire("three", chain("three"), "three")
	require.Equal(t, StateFailed, n.status("one").State)
	require.ErrorIs(t, n.status("one").LastError, blockdev.ErrNotFound)
	require.Equal(t, StateFailed, n.status("two").State)
	require.ErrorIs(t, n.status("two").LastError, layerdisk.ErrOtherDisk)
	_, err = n.Layers.LayerDir(n.uuid("two"), 0)
	require.ErrorIs(t, err, layerdisk.ErrOtherDisk)

	// It is tried again, and comes back.
	require.NoError(t, os.Rename(paths["two"]+".old", paths["two"]))
	n.reattach(paths["two"])
	soon(t, "the disk comes back", func() bool { return n.status("two").Serving })
	n.acquire("two", chain("two"), "two")

	_, err = n.Unstage(t.Context(), "one", UnstageOptions{})
	require.NoError(t, err, "a disk that is gone can be given up")
}

func (n *node) uuid(name string) string {
	n.t.Helper()
	uuid := n.status(name).UUID
	require.NotEmpty(n.t, uuid)
	return uuid
}

// reattach lets the volume's device go, as an operator does who exchanges the file behind it.
func (n *node) reattach(volumeID string) {
	n.t.Helper()
	require.NoError(n.t, n.driver.Detach(n.t.Context(), volumeID))
}
