package stage

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/test/harness/walk"
)

// What random walks have found, each on its own.

// onClouds runs a test on the clouds of TestWalk. In the end everything must be given up without a rest.
func onClouds(t *testing.T, test func(n *walker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newWalker(walk.New(t, 1))
		defer n.end()
		test(n)
		n.behave()
		time.Sleep(time.Hour)
		n.look()
		n.giveUp()
	})
}

func (n *walker) spec(name string) Spec {
	n.Helper()
	for _, s := range n.specs {
		if s.Name == name {
			return s
		}
	}
	n.Fatalf("no disk %s", name)
	return Spec{}
}

func (n *walker) have(name string) {
	n.Helper()
	spec := n.spec(name)
	spec.Keep = true
	_, err := n.stager.Stage(n.Context(), spec)
	require.NoError(n, err)
}

func (n *walker) hold(holder string, layers ...string) {
	n.Helper()
	held, err := n.stager.Layers.Acquire(n.Context(), holder, chain(layers...))
	require.NoError(n, err)
	n.holds[holder] = Hold{holder, held.DiskUUID, held.LayerNumber}
}

func (n *walker) disk(name string) (found DiskStatus) {
	for _, d := range n.stager.Disks() {
		if d.Name == name {
			found = d
		}
	}
	return found
}

// setAttached sets the device of the only volume of ours that is attached to a cloud.
func (n *walker) setAttached(driver string, state blockdevtest.DeviceState) {
	n.Helper()
	for _, id := range n.m.drivers[driver].Inventory().Attached {
		if !n.foreign[driver+"/"+id] {
			require.True(n, n.m.drivers[driver].SetDevice(id, state))
		}
	}
}

// A device may stop to answer right after it was asked whether it does: then the layer's directory hangs.
func TestDirectoryStalls(t *testing.T) {
	onClouds(t, func(n *walker) {
		n.have("one-a0-v")
		n.hold("h", "shared", "a0")
		n.setAttached("one", blockdevtest.DeviceStalls)
		start := time.Now()
		_, err := n.stager.Layers.Acquire(n.Context(), "i", chain("shared", "a0"))
		var miss *MissError
		require.ErrorAs(t, err, &miss)
		require.Equal(t, MissFailed, miss.Reason)
		require.Equal(t, checkWait, time.Since(start))
		require.ErrorContains(t, err, "has not answered for 3s")
	})
}

// Disks that stall while they are proved, as many as are worked on at once, are given up after a while, keep nobody
// waiting, and come back when their devices answer.
func TestProofsStall(t *testing.T) {
	onClouds(t, func(n *walker) {
		two := n.m.drivers["two"]
		names := []string{"two-b0-v", "two-b1-v", "two-b2-v", "two-b3-v", "two-common-v"}
		for i := range atOnce {
			n.source("two", fmt.Sprint("more", i))
			names = append(names, fmt.Sprintf("two-more%d-v", i))
		}
		for _, name := range names {
			n.have(name)
		}
		two.Misbehave(blockdevtest.Misbehaviour{StallDevice: 1})
		n.restart(true) // waits for Restore no longer than berthd may
		start := time.Now()
		n.have("one-a0-v")
		require.Zero(t, time.Since(start))
		_, err := n.stager.Layers.Acquire(n.Context(), "h", chain("shared", "a0"))
		require.NoError(t, err)
		require.NoError(t, n.stager.Layers.Release(n.Context(), "h"))
		time.Sleep(10 * time.Minute)
		for _, name := range names {
			require.ErrorContains(t, n.disk(name).LastError, "has not answered for 1m0s", name)
		}
		two.Misbehave(blockdevtest.Misbehaviour{})
		time.Sleep(5 * time.Minute)
		for _, name := range names {
			require.True(t, n.disk(name).Serving, name)
			_, err := n.stager.Unstage(n.Context(), name, UnstageOptions{})
			require.NoError(t, err)
		}
		for i := range atOnce {
			n.unsource("two", fmt.Sprint("more", i))
		}
	})
}

// unsource takes back what source made.
func (n *walker) unsource(driver, label string) {
	fake := n.m.drivers[driver]
	for _, spec := range n.specs {
		if spec.Driver != driver || n.labels[spec.Name] != label {
			continue
		}
		require.NoError(n, fake.DeleteVolume(n.Context(), spec.VolumeID))
		require.NoError(n, fake.DeleteVolumeSnapshot(n.Context(), spec.VolumeSnapshotID))
	}
}

// A device that shows less than its volume does so until it is attached anew.
func TestCutDeviceIsAttachedAnew(t *testing.T) {
	onClouds(t, func(n *walker) {
		n.have("one-a0-v")
		n.m.drivers["one"].Misbehave(blockdevtest.Misbehaviour{CutDevice: 1})
		n.restart(true)
		require.Equal(t, StateFailed, n.disk("one-a0-v").State)
		n.m.drivers["one"].Misbehave(blockdevtest.Misbehaviour{})
		time.Sleep(2 * mostRetry)
		require.True(t, n.disk("one-a0-v").Serving)
	})
}

// The storage makes a volume and does not say so, and does not list it yet when it is to be deleted.
func TestVolumeThatNobodyToldOf(t *testing.T) {
	for name, deleted := range map[string]bool{"the volume snapshot is there": false, "the volume snapshot is gone": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newWalker(walk.New(t, 1))
				defer n.end()
				one, spec := n.m.drivers["one"], n.spec("one-a0-s")
				one.Misbehave(blockdevtest.Misbehaviour{LoseAnswer: 1, VisibleAfter: blockdevtest.Between{Least: time.Minute, Most: time.Minute}})
				_, err := n.stager.Stage(n.Context(), spec)
				require.Error(t, err)
				require.Equal(t, spec.Name, n.disk(spec.Name).Name, "it must not be forgotten")
				one.Misbehave(blockdevtest.Misbehaviour{})
				want := sources
				if deleted {
					require.NoError(t, one.DeleteVolumeSnapshot(n.Context(), spec.VolumeSnapshotID))
					want--
					// Some storages look for the volume snapshot before they look for the name.
					one.Plan(blockdevtest.Fault{Op: "CreateVolume", Err: blockdev.ErrNotFound})
				}
				time.Sleep(settleWait + 2*mostRetry)
				synctest.Wait()
				require.Empty(t, n.stager.Disks())
				all := one.Inventory()
				require.Len(t, all.Volumes, sources+otherVolumes)
				require.Len(t, all.Snapshots, want)
			})
		})
	}
}

// A storage that refuses to make a volume has made none: nothing is waited for.
func TestVolumeThatIsRefused(t *testing.T) {
	onClouds(t, func(n *walker) {
		spec := n.spec("one-a0-s")
		spec.VolumeSnapshotID = "none"
		_, err := n.stager.Stage(n.Context(), spec)
		require.Error(t, err)
		require.Empty(t, n.stager.Disks())
	})
}

// A volume that was just made does not exist for the call that attaches it.
func TestVolumeIsSeenLate(t *testing.T) {
	onClouds(t, func(n *walker) {
		n.m.drivers["one"].Misbehave(blockdevtest.Misbehaviour{VisibleAfter: blockdevtest.Between{Least: time.Minute, Most: time.Minute}})
		start := time.Now()
		n.have("one-a0-s")
		require.InDelta(t, time.Minute, time.Since(start), float64(lastLook))
		require.Len(t, n.m.drivers["one"].Inventory().Volumes, sources+otherVolumes+1)
	})
}

// A volume that was made here and is gone is made again.
func TestVolumeIsMadeAgain(t *testing.T) {
	onClouds(t, func(n *walker) {
		one := n.m.drivers["one"]
		n.have("one-a0-s")
		old := n.disk("one-a0-s").VolumeID
		n.m.reboot()
		require.True(t, one.Remove(old))
		require.NoError(t, one.DeleteVolume(n.Context(), old))
		n.restart(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.True(t, n.disk("one-a0-s").Serving, "%v", n.disk("one-a0-s").LastError)
		require.NotEqual(t, old, n.disk("one-a0-s").VolumeID)
	})
}

// A copy of a disk that is out of service is mounted and fails then: the holders stay those of the first disk.
func TestCopyThatFailsTakesNoHolders(t *testing.T) {
	onClouds(t, func(n *walker) {
		n.have("two-b0-s")
		n.hold("h", "shared", "b0")
		n.setAttached("two", blockdevtest.DeviceFails)
		require.Error(t, n.stager.Check(n.Context(), "two-b0-s"))
		n.m.mounting = func(m mounted) {
			n.m.drivers["two"].SetDevice(n.spec("two-b0-v").VolumeID, blockdevtest.DeviceFails)
			n.mounting(m)
		}
		_, err := n.stager.Stage(n.Context(), n.spec("two-b0-v"))
		require.Error(t, err)
		require.Equal(t, 1, n.disk("two-b0-s").Holders)
		n.checkAll()
		n.setAttached("two", blockdevtest.DeviceWell)
		time.Sleep(mostRetry)
		synctest.Wait()
		require.Equal(t, StateInUse, n.disk("two-b0-s").State)
	})
}

// A disk whose device never comes can be given up at once.
func TestGivenUpWhileItIsAttached(t *testing.T) {
	onClouds(t, func(n *walker) {
		n.have("one-a0-v")
		n.m.drivers["one"].Misbehave(blockdevtest.Misbehaviour{DeviceAfter: blockdevtest.Between{Least: 100 * time.Hour, Most: 100 * time.Hour}})
		n.restart(true)
		start := time.Now()
		_, err := n.stager.Unstage(n.Context(), "one-a0-v", UnstageOptions{})
		require.NoError(t, err)
		require.Zero(t, time.Since(start))
		require.Empty(t, n.stager.Disks())
	})
}
