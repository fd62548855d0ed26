package control_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/control"
)

// Check takes a disk out of service if its volume has faults.
func (f *fakeStage) Check(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.disks[name]
	if !ok || f.faults[d.VolumeID] == 0 {
		return nil
	}
	d.State, d.Serving = "failed", false
	f.disks[name] = d
	return errors.New("input/output error")
}

func (f *fakeStage) change(name string, change func(*control.Disk)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.disks[name]
	change(&d)
	f.disks[name] = d
}

func (f *fakeStage) fault(volume string, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[volume] = times
}

func (f *fakeStage) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	log := f.log
	f.log = nil
	return log
}

func foundDisk(n int) control.FoundDisk {
	return control.FoundDisk{Driver: "attached", VolumeID: fmt.Sprintf("index:%d", n), UUID: fmt.Sprintf("%08d-0000-4000-8000-000000000000", n),
		IndexDigest: digest.FromString(fmt.Sprint(n)), Device: fmt.Sprintf("/dev/vd%d", n)}
}

// discovering runs a discovery in a synctest bubble; found tells it what is there and waits until it has acted.
func discovering(t *testing.T, f *fakeStage) (s *control.Service, w *control.Watcher, found func(all ...control.FoundDisk)) {
	t.Helper()
	s, waiting, ledger := newService(t, f)
	d := control.NewDiscovery(f, waiting, ledger)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		waiting.Wait()
	})
	return s, ledger.Watch(ctx), func(all ...control.FoundDisk) {
		d.Found(all)
		synctest.Wait()
	}
}

// A disk that has gone and cannot be given up, because something hangs that reads from it, holds up no disk that comes.
func TestDiscoveryGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStage()
		f.stuck = "found-000000090000"
		f.disks[f.stuck] = control.Disk{Name: f.stuck, UUID: foundDisk(9).UUID, VolumeID: "index:9", State: "failed"}
		_, _, found := discovering(t, f)
		found(foundDisk(1))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"attach found-000000010000"}, f.took())
	})
}

func TestDiscovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStage()
		s, w, found := discovering(t, f)
		// Nothing is given up before the first look.
		f.disks["found-000000090000"] = control.Disk{Name: "found-000000090000", UUID: foundDisk(9).UUID, VolumeID: "index:9", State: "failed"}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, f.took())

		found(foundDisk(1))
		require.ElementsMatch(t, []string{"detach found-000000090000 false", "attach found-000000010000"}, f.took())
		require.Equal(t, control.DiskDetached, (<-w.Events).Event.Kind)
		require.Equal(t, "found-000000010000", (<-w.Events).Event.Disk)
		d := f.disks["found-000000010000"]
		require.Equal(t, foundDisk(1).IndexDigest, d.IndexDigest)
		require.True(t, d.Keep)
		require.Equal(t, "attached", d.Driver)
		f.change("found-000000010000", func(d *control.Disk) { d.UUID = foundDisk(1).UUID })

		// A second one, and the first again: nothing more is done about that.
		found(foundDisk(1), foundDisk(2))
		f.change("found-000000020000", func(d *control.Disk) { d.UUID = foundDisk(2).UUID })
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"attach found-000000020000"}, f.took())

		// Detached by hand it stays away until it goes and comes.
		_, err := s.DetachDisk(t.Context(), "found-000000020000", false)
		require.NoError(t, err)
		found(foundDisk(1), foundDisk(2))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"detach found-000000020000 false"}, f.took())
		found(foundDisk(1))
		found(foundDisk(1), foundDisk(2))
		require.Equal(t, []string{"attach found-000000020000"}, f.took())
		f.change("found-000000020000", func(d *control.Disk) { d.UUID = foundDisk(2).UUID })

		// Gone with users: kept, asked for as soon as it is there, and given up when the last user goes.
		f.change("found-000000010000", func(d *control.Disk) { d.Holders = 2 })
		f.fault("index:1", -1)
		found(foundDisk(2))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, f.took())
		require.Equal(t, "failed", f.disks["found-000000010000"].State)
		f.fault("index:1", 0)
		found(foundDisk(1), foundDisk(2))
		require.Equal(t, []string{"attach found-000000010000"}, f.took())
		require.True(t, f.disks["found-000000010000"].Serving)
		f.change("found-000000010000", func(d *control.Disk) { d.UUID, d.Holders = foundDisk(1).UUID, 2 })
		f.fault("index:1", -1)
		found(foundDisk(2))
		require.Empty(t, f.took())
		f.change("found-000000010000", func(d *control.Disk) { d.Holders = 0 })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"detach found-000000010000 false"}, f.took())
	})
}

func TestDiscoveryKeepsTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStage()
		s, _, found := discovering(t, f)
		f.fault("index:1", 3)
		found(foundDisk(1))
		disks, err := s.ListDisks(t.Context())
		require.NoError(t, err)
		require.Len(t, disks, 1)
		require.Equal(t, control.StateWaiting, disks[0].State)
		require.False(t, disks[0].Configured)
		require.Contains(t, disks[0].LastError, "is not there")
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
		disks, err = s.ListDisks(t.Context())
		require.NoError(t, err)
		require.Len(t, disks, 1)
	})
}

// TestDiscoveryOfAttached: the very same disk is attached already, by its path.
func TestDiscoveryOfAttached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStage()
		_, _, found := discovering(t, f)
		f.disks["base"] = control.Disk{Name: "base", Driver: "loop", VolumeID: "/dev/vdb", UUID: foundDisk(1).UUID, State: "idle", Serving: true}
		found(foundDisk(1))
		_, err := f.Detach(t.Context(), "base", false)
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

func TestKeepChecking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStage()
		for _, name := range []string{"a", "b"} {
			_, err := f.Attach(t.Context(), control.DiskSpec{Name: name, VolumeID: "/" + name})
			require.NoError(t, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			control.KeepChecking(ctx, f)
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
