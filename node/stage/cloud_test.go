package stage

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/retry"
)

// cloud is a Stager on fakes.
type cloud struct {
	*Stager
	t      testing.TB
	driver *blockdevtest.Fake
	sys    *fakeSystem
	config Config
}

func newCloud(t testing.TB, change func(*Config)) *cloud {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	c := &cloud{t: t, driver: blockdevtest.NewFake(0)}
	c.sys = newFakeSystem(c.driver)
	c.config = Config{Root: root, Drivers: map[string]blockdev.Attacher{"cloud": retry.Around(c.driver)}}
	if change != nil {
		change(&c.config)
	}
	c.open()
	return c
}

func (c *cloud) open() {
	c.t.Helper()
	var err error
	c.Stager, err = open(c.config, c.sys)
	require.NoError(c.t, err)
	require.NoError(c.t, c.Restore(c.t.Context()))
	_, err = c.Reconcile(c.t.Context(), nil)
	require.NoError(c.t, err)
}

func (c *cloud) close() {
	c.t.Helper()
	require.NoError(c.t, c.Close())
}

func (c *cloud) left() (left []string) {
	c.t.Helper()
	c.driver.Plan()
	attached, err := c.driver.Attached(c.t.Context())
	require.NoError(c.t, err)
	for id := range attached {
		left = append(left, "attached "+id)
	}
	mounts, err := c.sys.Below("")
	require.NoError(c.t, err)
	for _, m := range mounts {
		left = append(left, "mount "+m.Target)
	}
	volumes, err := c.driver.ListVolumes(c.t.Context())
	require.NoError(c.t, err)
	for _, v := range volumes {
		if strings.HasPrefix(v.Name, "berth-") {
			left = append(left, "volume "+v.Name)
		}
	}
	records, _, err := c.journal.load()
	require.NoError(c.t, err)
	for _, rec := range records {
		left = append(left, "record "+rec.Spec.Name)
	}
	return left
}

func TestIdleDiskLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, func(cfg *Config) { cfg.IdleTimeout = 10 * time.Minute })
		defer c.close()
		idle, kept := c.sys.volume(t, "idle", "a"), c.sys.volume(t, "kept", "b")
		for _, spec := range []Spec{{Name: "idle", VolumeID: idle.ID}, {Name: "kept", VolumeID: kept.ID, Keep: true}} {
			spec.Driver = "cloud"
			_, err := c.Stage(t.Context(), spec)
			require.NoError(t, err)
		}
		time.Sleep(9 * time.Minute)
		_, err := c.Layers.Acquire(t.Context(), "h", chain("a"))
		require.NoError(t, err)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Len(t, c.Disks(), 2, "a disk in use stays")
		require.NoError(t, c.Layers.Release(t.Context(), "h"))
		time.Sleep(10*time.Minute - time.Second)
		synctest.Wait()
		require.Len(t, c.Disks(), 2, "the time begins when the last holder leaves")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		disks := c.Disks()
		require.Len(t, disks, 1)
		require.Equal(t, "kept", disks[0].Name)
		require.Len(t, c.left(), 3, "one device, one mount, one record")
	})
}

func TestNothingLeavesBeforeReconcile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, func(cfg *Config) { cfg.IdleTimeout = time.Minute })
		v := c.sys.volume(t, "one", "a")
		_, err := c.Stage(t.Context(), Spec{Name: "one", Driver: "cloud", VolumeID: v.ID})
		require.NoError(t, err)
		c.close()
		c.Stager, err = open(c.config, c.sys)
		require.NoError(t, err)
		defer c.close()
		require.NoError(t, c.Restore(t.Context()))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Len(t, c.Disks(), 1)
		uuid := c.Disks()[0].UUID
		missing, err := c.Reconcile(t.Context(), []Hold{{"x", uuid, 0}, {"y", "00000000-0000-0000-0000-000000000000", 3}})
		require.NoError(t, err)
		require.Equal(t, []Hold{{"y", "00000000-0000-0000-0000-000000000000", 3}}, missing)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Len(t, c.Disks(), 1)
		require.NoError(t, c.Layers.Release(t.Context(), "x"))
		time.Sleep(61 * time.Second)
		synctest.Wait()
		require.Empty(t, c.Disks())
	})
}

// Each call that Stage and Unstage make fails once: throttled, for good, and done but not answered.
func TestFaultAtEveryCall(t *testing.T) {
	lasting := fmt.Errorf("the storage is out of order: %w", errdefs.ErrInternal)
	for _, fault := range []blockdevtest.Fault{
		{Err: blockdev.ErrThrottled}, {Err: blockdev.ErrThrottled, Done: true}, {Err: lasting}, {Err: lasting, Done: true},
	} {
		for call := 1; call <= 6; call++ {
			fault.Call = call
			t.Run(fmt.Sprintf("%v/done=%t/%d", fault.Err, fault.Done, call), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { faultAt(t, fault) })
			})
		}
	}
}

func faultAt(t *testing.T, fault blockdevtest.Fault) {
	c := newCloud(t, nil)
	defer c.close()
	v := c.sys.volume(t, "one", "a")
	s, err := c.driver.CreateVolumeSnapshot(t.Context(), "s", v.ID)
	require.NoError(t, err)
	// CreateVolume, Attached, Attach; then Detach, DeleteVolume.
	c.driver.Plan(fault)
	_, err = c.Stage(t.Context(), Spec{Name: "one", Driver: "cloud", VolumeSnapshotID: s.ID})
	if err == nil {
		_, err = c.Layers.Acquire(t.Context(), "h", chain("a"))
		require.NoError(t, err)
		require.NoError(t, c.Layers.Release(t.Context(), "h"))
		if _, err := c.Unstage(t.Context(), "one", UnstageOptions{}); err != nil {
			require.ErrorIs(t, err, fault.Err)
			time.Sleep(time.Minute) // the background goes on
			synctest.Wait()
		}
	} else {
		require.ErrorIs(t, err, fault.Err)
	}
	require.Empty(t, c.Disks())
	require.Empty(t, c.left())
}

func TestFailedDiskIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, nil)
		v := c.sys.volume(t, "one", "a")
		_, err := c.Stage(t.Context(), Spec{Name: "one", Driver: "cloud", VolumeID: v.ID})
		require.NoError(t, err)
		c.close()
		lasting := fmt.Errorf("the storage is out of order: %w", errdefs.ErrInternal)
		c.driver.Plan(blockdevtest.Fault{Op: "Attach", Err: lasting})
		c.open()
		defer c.close()
		st := c.Disks()[0]
		require.Equal(t, StateFailed, st.State)
		require.ErrorIs(t, st.LastError, lasting)
		time.Sleep(time.Hour)
		synctest.Wait()
		attempts := 0
		for _, a := range c.driver.Actions() {
			if a.Op == "Attach" && a.Err != nil {
				attempts++
			}
		}
		require.Greater(t, attempts, 30, "it must not be given up")
		require.Less(t, attempts, 80, "it must not be tried all the time")
		c.driver.Plan()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.True(t, c.Disks()[0].Serving)
		require.NoError(t, c.Disks()[0].LastError)
	})
}

// A pull waits for a disk that is on its way, once for all its layers.
func TestAcquireWaitsForDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, func(cfg *Config) { cfg.AttachWait = 5 * time.Second })
		defer c.close()
		v := c.sys.volume(t, "one", "a")
		var took time.Duration
		c.driver.OnCall(func(ctx context.Context, a blockdevtest.Action) error {
			if a.Op == "Attach" {
				time.Sleep(took)
			}
			return nil
		})
		for _, tc := range []struct {
			attach, wait time.Duration
			hit          bool
		}{{2 * time.Second, 2 * time.Second, true}, {time.Minute, 5 * time.Second, false}} {
			took = tc.attach
			staged := make(chan error, 1)
			go func() {
				_, err := c.Stage(t.Context(), Spec{Name: "one", Driver: "cloud", VolumeID: v.ID})
				staged <- err
			}()
			synctest.Wait()
			start := time.Now()
			_, err := c.Layers.Acquire(t.Context(), "h", chain("a"))
			require.Equal(t, tc.wait, time.Since(start))
			require.Equal(t, tc.hit, err == nil, "%v", err)
			if !tc.hit {
				var miss *MissError
				require.ErrorAs(t, err, &miss)
				require.Equal(t, MissNotReady, miss.Reason)
				_, err = c.Layers.Acquire(t.Context(), "h", chain("a"))
				require.Error(t, err)
				require.Equal(t, tc.wait, time.Since(start), "the second layer does not wait again")
			}
			require.NoError(t, <-staged)
			require.NoError(t, c.Layers.Release(t.Context(), "h"))
			_, err = c.Unstage(t.Context(), "one", UnstageOptions{})
			require.NoError(t, err)
		}
	})
}

func TestSickDiskIsReplacedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, nil)
		defer c.close()
		v := c.sys.volume(t, "one", "a")
		_, err := c.Stage(t.Context(), Spec{Name: "one", Driver: "cloud", VolumeID: v.ID})
		require.NoError(t, err)
		_, err = c.Layers.Acquire(t.Context(), "h", chain("a"))
		require.NoError(t, err)
		time.Sleep(2 * checkFresh)
		c.sys.setSick(fmt.Errorf("input/output error: %w", errdefs.ErrDataLoss))
		_, err = c.Layers.Acquire(t.Context(), "i", chain("a"))
		var miss *MissError
		require.ErrorAs(t, err, &miss)
		require.Equal(t, MissFailed, miss.Reason)
		require.ErrorContains(t, err, "input/output error")
		st := c.Disks()[0]
		require.Equal(t, StateFailed, st.State)
		require.Equal(t, 1, st.Holders, "only the first")
		_, err = c.Layers.LayerDir(st.UUID, 0)
		require.True(t, errdefs.IsUnavailable(err), err)
		c.sys.setSick(nil)

		// A copy of the disk may take its place, and its holders with it.
		snapshot, err := c.driver.CreateVolumeSnapshot(t.Context(), "s", v.ID)
		require.NoError(t, err)
		copied, err := c.Stage(t.Context(), Spec{Name: "copy", Driver: "cloud", VolumeSnapshotID: snapshot.ID})
		require.NoError(t, err)
		require.Equal(t, st.UUID, copied.UUID)
		require.Equal(t, 1, copied.Holders)
		_, err = c.Unstage(t.Context(), "one", UnstageOptions{})
		require.NoError(t, err)
		_, err = c.Layers.LayerDir(st.UUID, 0)
		require.NoError(t, err)
	})
}
