package blockdevtest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
)

// wrong is a Fake with two volumes, the IDs of which have the same first 20 bytes, that misbehaves.
type wrong struct {
	*testing.T
	*blockdevtest.Fake
	one, two blockdev.Volume
}

func misbehaving(t *testing.T, m blockdevtest.Misbehaviour, test func(w wrong)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := wrong{T: t, Fake: blockdevtest.NewFake(4)}
		w.one, w.two = w.make("one"), w.make("two")
		m.Seed = 7
		w.Misbehave(m)
		test(w)
	})
}

func (w wrong) make(name string) blockdev.Volume {
	w.Helper()
	v, err := w.CreateVolume(w.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: 8192})
	require.NoError(w, err)
	return v
}

func (w wrong) attach(v blockdev.Volume) (blockdev.Device, error) {
	return w.Attach(w.Context(), v.ID, blockdev.AttachOptions{})
}

func (w wrong) read(dev blockdev.Device, offset int64) error {
	c, err := w.OpenDevice(dev, false)
	if err != nil {
		return err
	}
	_, err = c.ReadAt(make([]byte, 512), offset)
	return err
}

// Each misbehaviour does what it says.
func TestMisbehaviours(t *testing.T) {
	type M = blockdevtest.Misbehaviour
	for name, tc := range map[string]struct {
		m    M
		test func(w wrong)
	}{
		"throttle": {M{Throttle: blockdevtest.Bucket{Size: 2, PerSecond: 0.5}}, func(w wrong) {
			for i := range 3 {
				_, err := w.ListVolumes(w.Context())
				require.Equal(w, i == 2, err != nil)
				require.Equal(w, i == 2, errdefs.IsUnavailable(err))
			}
			_, err := w.attach(w.one)
			require.NoError(w, err, "each operation has its own bucket")
			time.Sleep(2 * time.Second)
			_, err = w.ListVolumes(w.Context())
			require.NoError(w, err)
		}},
		"latency": {M{Latency: blockdevtest.Between{Least: 4 * time.Second, Most: 8 * time.Second}}, func(w wrong) {
			start := time.Now()
			_, err := w.attach(w.one)
			require.NoError(w, err)
			require.GreaterOrEqual(w, time.Since(start), 4*time.Second)
			ctx, cancel := context.WithTimeout(w.Context(), time.Second)
			defer cancel()
			_, err = w.Attach(ctx, w.two.ID, blockdev.AttachOptions{})
			require.ErrorIs(w, err, context.DeadlineExceeded)
			require.Len(w, w.Inventory().Attached, 1, "not done yet")
			ctx, cancel = context.WithTimeout(w.Context(), 4*time.Second-1)
			defer cancel()
			_, err = w.Attach(ctx, w.two.ID, blockdev.AttachOptions{})
			require.ErrorIs(w, err, context.DeadlineExceeded)
			require.Len(w, w.Inventory().Attached, 2, "done, not answered")
		}},
		"fail": {M{Fail: 1}, func(w wrong) {
			_, err := w.attach(w.one)
			require.ErrorIs(w, err, blockdev.ErrFailed)
			require.Empty(w, w.Inventory().Attached)
		}},
		"lose answer": {M{LoseAnswer: 1}, func(w wrong) {
			_, err := w.attach(w.one)
			require.ErrorIs(w, err, blockdev.ErrThrottled)
			require.Len(w, w.Inventory().Attached, 1)
		}},
		"visible after": {M{VisibleAfter: blockdevtest.Between{Least: time.Minute, Most: time.Minute}}, func(w wrong) {
			v := w.make("late")
			require.Equal(w, v, w.make("late"), "making it again finds it")
			_, err := w.attach(v)
			require.ErrorIs(w, err, blockdev.ErrNotFound)
			_, err = w.CreateVolumeSnapshot(w.Context(), "s", v.ID)
			require.ErrorIs(w, err, blockdev.ErrNotFound)
			list := func() int {
				all, err := w.ListVolumes(w.Context())
				require.NoError(w, err)
				return len(all)
			}
			require.Equal(w, 2, list())
			require.Len(w, w.Inventory().Volumes, 3)
			time.Sleep(time.Minute)
			require.Equal(w, 3, list())
			_, err = w.GetVolume(w.Context(), v.ID)
			require.NoError(w, err)
			require.NoError(w, w.DeleteVolume(w.Context(), v.ID))
			require.Equal(w, 3, list())
			require.Len(w, w.Inventory().Volumes, 2)
			_, err = w.attach(v)
			require.ErrorIs(w, err, blockdev.ErrNotFound)
			time.Sleep(time.Minute)
			require.Equal(w, 2, list())
		}},
		"ready after": {M{ReadyAfter: blockdevtest.Between{Least: time.Minute, Most: time.Minute}}, func(w wrong) {
			s, err := w.CreateVolumeSnapshot(w.Context(), "s", w.one.ID)
			require.NoError(w, err)
			require.False(w, s.ReadyToUse)
			_, err = w.CreateVolume(w.Context(), blockdev.CreateVolumeRequest{Name: "v", SourceVolumeSnapshotID: s.ID})
			require.ErrorIs(w, err, blockdev.ErrNotReady)
			time.Sleep(time.Minute)
			s, err = w.GetVolumeSnapshot(w.Context(), s.ID)
			require.NoError(w, err)
			require.True(w, s.ReadyToUse)
		}},
		"device after": {M{DeviceAfter: blockdevtest.Between{Least: time.Minute, Most: time.Minute}}, func(w wrong) {
			ctx, cancel := context.WithTimeout(w.Context(), time.Second)
			defer cancel()
			_, err := w.Attach(ctx, w.one.ID, blockdev.AttachOptions{})
			require.ErrorIs(w, err, context.DeadlineExceeded)
			all, err := w.Attached(w.Context())
			require.NoError(w, err)
			require.Empty(w, all)
			require.Len(w, w.Inventory().Attached, 1)
			start := time.Now()
			dev, err := w.attach(w.one)
			require.NoError(w, err)
			require.Equal(w, 59*time.Second, time.Since(start))
			require.NoError(w, w.read(dev, 0))
		}},
		"reuse names": {M{ReuseNames: true}, func(w wrong) {
			first, err := w.attach(w.one)
			require.NoError(w, err)
			release, err := w.Use(first.Path)
			require.NoError(w, err)
			require.True(w, w.Remove(w.one.ID))
			second, err := w.attach(w.two)
			require.NoError(w, err)
			require.NotEqual(w, first.Path, second.Path, "the name is still used")
			release()
			again, err := w.attach(w.one)
			require.NoError(w, err)
			require.Equal(w, first.Path, again.Path)
			w.Reboot()
			all, err := w.Attached(w.Context())
			require.NoError(w, err)
			require.Len(w, all, 2)
		}},
		"cut serials": {M{CutSerials: 1}, func(w wrong) {
			one, err := w.attach(w.one)
			require.NoError(w, err)
			two, err := w.attach(w.two)
			require.NoError(w, err)
			require.Equal(w, one, two)
		}},
		"slots taken": {M{SlotsTaken: 3}, func(w wrong) {
			_, err := w.attach(w.one)
			require.NoError(w, err)
			_, err = w.attach(w.two)
			require.ErrorIs(w, err, blockdev.ErrAttachLimit)
		}},
		"stick detach": {M{StickDetach: 1, StuckFor: blockdevtest.Between{Least: time.Hour, Most: time.Hour}}, func(w wrong) {
			_, err := w.attach(w.one)
			require.NoError(w, err)
			for range 2 {
				require.ErrorIs(w, w.Detach(w.Context(), w.one.ID), blockdev.ErrThrottled)
			}
			_, err = w.attach(w.one)
			require.ErrorIs(w, err, blockdev.ErrThrottled)
			require.ErrorIs(w, w.DeleteVolume(w.Context(), w.one.ID), blockdev.ErrInUse)
			time.Sleep(time.Hour)
			require.Empty(w, w.Inventory().Attached)
			_, err = w.attach(w.one)
			require.NoError(w, err)
		}},
		"size step": {M{SizeStep: 5000}, func(w wrong) {
			v := w.make("large")
			require.EqualValues(w, 10000, v.SizeBytes)
			require.Equal(w, v, w.make("large"))
		}},
		"cut device": {M{CutDevice: 1}, func(w wrong) {
			dev, err := w.attach(w.one)
			require.NoError(w, err)
			require.NoError(w, w.read(dev, 0))
			require.Error(w, w.read(dev, 6000))
		}},
		"read error": {M{ReadError: 1}, func(w wrong) {
			dev, err := w.attach(w.one)
			require.NoError(w, err)
			require.True(w, errdefs.IsDataLoss(w.read(dev, 0)))
		}},
		"fail device": {M{FailDevice: 1}, func(w wrong) {
			dev, err := w.attach(w.one)
			require.NoError(w, err)
			require.True(w, errdefs.IsDataLoss(w.read(dev, 0)))
		}},
		"stall device": {M{StallDevice: 1}, func(w wrong) {
			dev, err := w.attach(w.one)
			require.NoError(w, err)
			done := make(chan error, 1)
			go func() { done <- w.read(dev, 0) }()
			time.Sleep(time.Hour)
			require.Empty(w, done)
			require.NoError(w, w.Detach(w.Context(), w.one.ID))
			require.Error(w, <-done)
		}},
		"device fails and stalls": {M{}, func(w wrong) {
			dev, err := w.attach(w.one)
			require.NoError(w, err)
			require.True(w, w.SetDevice(w.one.ID, blockdevtest.DeviceFails))
			require.True(w, errdefs.IsDataLoss(w.read(dev, 0)))
			require.True(w, w.SetDevice(w.one.ID, blockdevtest.DeviceStalls))
			done := make(chan error, 1)
			go func() { done <- w.read(dev, 0) }()
			time.Sleep(time.Hour)
			require.Empty(w, done)
			require.True(w, w.SetDevice(w.one.ID, blockdevtest.DeviceWell))
			require.NoError(w, <-done)
			require.False(w, w.SetDevice(w.two.ID, blockdevtest.DeviceFails))
		}},
	} {
		t.Run(name, func(t *testing.T) { misbehaving(t, tc.m, tc.test) })
	}
}

// The same seed has the same things happen, whatever is done to other objects in between.
func TestMisbehaviourIsRepeatable(t *testing.T) {
	sequence := func(others bool) (all []bool) {
		misbehaving(t, blockdevtest.Misbehaviour{Fail: 0.5}, func(w wrong) {
			for range 50 {
				if others {
					_, _ = w.attach(w.two)
				}
				_, err := w.attach(w.one)
				all = append(all, err == nil)
			}
		})
		return all
	}
	first := sequence(false)
	require.Contains(t, first, true)
	require.Contains(t, first, false)
	require.Equal(t, first, sequence(true))
}
