package disks_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
)

func foundDisk(n int) disks.Found {
	return disks.Found{Driver: "attached", VolumeID: fmt.Sprintf("index:%d", n), UUID: fmt.Sprintf("%08d-0000-4000-8000-000000000000", n),
		IndexDigest: digest.FromString(fmt.Sprint(n)), Device: fmt.Sprintf("/dev/vd%d", n)}
}

// discovering runs a discovery in a synctest bubble; found tells it what is there and waits until it has acted.
func discovering(t *testing.T, f *fakeStager) (k *disks.Keeper, w *events.Watcher, found func(all ...disks.Found)) {
	t.Helper()
	k, ledger := newKeeper(f)
	d := disks.NewDiscovery(k)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		k.Wait()
	})
	return k, ledger.Watch(ctx), func(all ...disks.Found) {
		d.Update(all)
		synctest.Wait()
	}
}

// A disk that has gone and cannot be given up, because something hangs that reads from it, holds up no disk that comes.
func TestDiscoveryGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStager()
		f.stuck = "found-000000090000"
		f.disks[f.stuck] = stage.DiskStatus{Name: f.stuck, UUID: foundDisk(9).UUID, VolumeID: "index:9", State: stage.StateFailed}
		_, _, found := discovering(t, f)
		found(foundDisk(1))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"attach found-000000010000"}, f.took())
	})
}

func TestDiscovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStager()
		k, w, found := discovering(t, f)
		// Nothing is given up before the first look.
		f.disks["found-000000090000"] = stage.DiskStatus{Name: "found-000000090000", UUID: foundDisk(9).UUID, VolumeID: "index:9", State: stage.StateFailed}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, f.took())

		found(foundDisk(1))
		require.ElementsMatch(t, []string{"detach found-000000090000 false", "attach found-000000010000"}, f.took())
		require.Equal(t, events.DiskDetached, (<-w.Events).Event.Kind)
		require.Equal(t, "found-000000010000", (<-w.Events).Event.Disk)
		d := f.disks["found-000000010000"]
		require.Equal(t, foundDisk(1).IndexDigest, d.IndexDigest)
		require.True(t, d.Keep)
		require.Equal(t, "attached", d.Driver)
		f.change("found-000000010000", func(d *stage.DiskStatus) { d.UUID = foundDisk(1).UUID })

		// A second one, and the first again: nothing more is done about that.
		found(foundDisk(1), foundDisk(2))
		f.change("found-000000020000", func(d *stage.DiskStatus) { d.UUID = foundDisk(2).UUID })
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"attach found-000000020000"}, f.took())

		// Detached by hand it stays away until it goes and comes.
		_, err := k.Detach(t.Context(), "found-000000020000", false)
		require.NoError(t, err)
		found(foundDisk(1), foundDisk(2))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"detach found-000000020000 false"}, f.took())
		found(foundDisk(1))
		found(foundDisk(1), foundDisk(2))
		require.Equal(t, []string{"attach found-000000020000"}, f.took())
		f.change("found-000000020000", func(d *stage.DiskStatus) { d.UUID = foundDisk(2).UUID })

		// Gone with users: kept, asked for as soon as it is there, and given up when the last user goes.
		f.change("found-000000010000", func(d *stage.DiskStatus) { d.Holders = 2 })
		f.fault("index:1", -1)
		found(foundDisk(2))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, f.took())
		require.Equal(t, stage.StateFailed, f.disks["found-000000010000"].State)
		f.fault("index:1", 0)
		found(foundDisk(1), foundDisk(2))
		require.Equal(t, []string{"attach found-000000010000"}, f.took())
		require.True(t, f.disks["found-000000010000"].Serving)
		f.change("found-000000010000", func(d *stage.DiskStatus) { d.UUID, d.Holders = foundDisk(1).UUID, 2 })
		f.fault("index:1", -1)
		found(foundDisk(2))
		require.Empty(t, f.took())
		f.change("found-000000010000", func(d *stage.DiskStatus) { d.Holders = 0 })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"detach found-000000010000 false"}, f.took())
	})
}

func TestDiscoveryKeepsTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStager()
		k, _, found := discovering(t, f)
		f.fault("index:1", 3)
		found(foundDisk(1))
		list := k.List()
		require.Len(t, list, 1)
		require.Equal(t, disks.StateWaiting, list[0].State)
		require.False(t, list[0].Configured)
		require.ErrorContains(t, list[0].LastError, "is not there")
		time.Sleep(7 * time.Second)
		synctest.Wait()
		require.Len(t, f.took(), 4)
		require.True(t, f.disks["found-000000010000"].Serving)

		// What goes while it is tried is not tried any more.
		f.fault("index:2", -1)
		found(foundDisk(1), foundDisk(2))
		found(foundDisk(1))
		f.took()
		time.Sleep(time.Hour)
		require.Empty(t, f.took())
		list = k.List()
		require.Len(t, list, 1)
	})
}

// TestDiscoveryOfAttached: the very same disk is attached already, by its path.
func TestDiscoveryOfAttached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStager()
		_, _, found := discovering(t, f)
		f.disks["base"] = stage.DiskStatus{Name: "base", Driver: "loop", VolumeID: "/dev/vdb", UUID: foundDisk(1).UUID, State: stage.StateIdle, Serving: true}
		found(foundDisk(1))
		_, err := f.Unstage(t.Context(), "base", stage.UnstageOptions{})
		require.NoError(t, err)
		found(foundDisk(1))
		require.Equal(t, []string{"detach base false"}, f.took(), "detached by hand it stays away")

		// Or it is attached between the look and the attempt.
		f.exists = true
		found(foundDisk(2))
		time.Sleep(time.Hour)
		require.Equal(t, []string{"attach found-000000020000"}, f.took())
	})
}

// Two disks have one UUID and different indexes: one is used, always the same, and the other is listed with the reason.
// It takes over when the first has gone.
func TestDiscoveryOfOneUUIDTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStager()
		k, _, found := discovering(t, f)
		first, second := foundDisk(1), foundDisk(2)
		second.UUID = first.UUID
		found(second, first)
		require.Equal(t, []string{"attach found-000000010000"}, f.took())
		require.Equal(t, first.IndexDigest, f.disks["found-000000010000"].IndexDigest)
		f.change("found-000000010000", func(d *stage.DiskStatus) { d.UUID = first.UUID })
		time.Sleep(time.Minute)
		synctest.Wait()
		list := k.List()
		require.Len(t, list, 2)
		refused := list[1]
		require.Equal(t, "found-"+second.IndexDigest.Encoded()[:12], refused.Name)
		require.Equal(t, second.VolumeID, refused.VolumeID)
		require.False(t, refused.Serving)
		require.ErrorContains(t, refused.LastError, "disk found-000000010000 has the same UUID "+first.UUID+" and another index, "+first.IndexDigest.String())

		// Looked at the other way round, the one that is attached keeps the UUID.
		found(first, second)
		require.Empty(t, f.took())
		f.fault(first.VolumeID, -1)
		found(second)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"detach found-000000010000 false", "attach found-000000010000"}, f.took())
		require.Equal(t, second.IndexDigest, f.disks["found-000000010000"].IndexDigest)
		require.Len(t, k.List(), 1)
	})
}

func TestKeepChecking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStager()
		for _, name := range []string{"a", "b"} {
			_, err := f.Stage(t.Context(), stage.Spec{Name: name, VolumeID: "/" + name})
			require.NoError(t, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			disks.KeepChecking(ctx, f)
		}()
		f.fault("/b", -1)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		require.True(t, f.disks["a"].Serving)
		require.False(t, f.disks["b"].Serving)
		cancel()
		<-ended
	})
}
