package lifecycle_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// TestMaxBuilds also shows that waiting does not count for the timeout.
func TestMaxBuilds(t *testing.T) {
	newWorld(t, func(w *world) {
		w.builder.set(20*time.Minute, nil)
		for i := range 4 {
			sp := spec(refA)
			sp.Build.TimeoutMinutes = 30
			w.create(fmt.Sprintf("n%d", i), sp)
		}
		for i := range 4 {
			w.await(fmt.Sprintf("n%d", i), imagesnapshot.PhaseAvailable)
		}
		require.Equal(t, 2, w.builder.most)
	}, func(w *world) { w.cfg.MaxBuilds = 2 })
}

// TestTimeout is C-39 and Q12.
func TestTimeout(t *testing.T) {
	newWorld(t, func(w *world) {
		w.builder.set(100*time.Hour, nil)
		sp := spec(refA)
		sp.Build.TimeoutMinutes = 30
		w.create("one", sp)
		w.settle(29 * time.Minute)
		require.Equal(t, imagesnapshot.PhaseCreating, w.get("one").Status.Phase)
		w.settle(time.Minute + time.Second)
		s := w.get("one")
		require.Equal(t, imagesnapshot.PhaseUnavailable, s.Status.Phase)
		require.Equal(t, imagesnapshot.ReasonBuildTimeout, s.Status.Reason)
		require.Zero(t, w.builder.running)
		w.requireStorage()
	})
}

// TestAsNeeded grows the volume when the builder says that it is too small.
func TestAsNeeded(t *testing.T) {
	newWorld(t, func(w *world) {
		w.builder.errs = []error{&lifecycle.TooSmallError{NeededBytes: 50<<30 + 1, Err: fmt.Errorf("out of space")}}
		sp := spec(refA)
		sp.Size.AsNeeded = true
		w.create("one", sp)
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.EqualValues(t, 51<<30, s.Status.VolumeSnapshots[0].SizeBytes)
		w.requireStorage(s)

		w.builder.set(0, &lifecycle.TooSmallError{NeededBytes: 500 << 30, Err: fmt.Errorf("out of space")})
		w.create("two", sp)
		two := w.await("two", imagesnapshot.PhaseFailed)
		require.Equal(t, imagesnapshot.ReasonTooSmall, two.Status.Reason)
		w.create("fixed", spec(refA))
		require.Equal(t, imagesnapshot.ReasonTooSmall, w.await("fixed", imagesnapshot.PhaseFailed).Status.Reason)
		w.requireStorage(s)
	})
}

// TestStorageFaults: what passes is waited for, what does not ends the work.
func TestStorageFaults(t *testing.T) {
	for _, op := range []string{"CreateVolume", "Attach", "Detach", "CreateVolumeSnapshot", "GetVolumeSnapshot", "DeleteVolume"} {
		t.Run(op, func(t *testing.T) {
			newWorld(t, func(w *world) {
				w.fake.Plan(blockdevtest.Fault{Op: op, Times: 20, Err: blockdev.ErrThrottled})
				w.create("one", spec(refA))
				s := w.await("one", imagesnapshot.PhaseAvailable)
				w.requireStorage(s)
				w.requireContent(s)
			}, func(w *world) { w.ready = time.Minute })
		})
		t.Run(op+", answer lost", func(t *testing.T) {
			newWorld(t, func(w *world) {
				w.fake.Plan(blockdevtest.Fault{Op: op, Times: 1, Err: blockdev.ErrThrottled, Done: true})
				w.create("one", spec(refA))
				s := w.await("one", imagesnapshot.PhaseAvailable)
				w.requireStorage(s)
				w.requireContent(s)
			})
		})
	}
	for _, op := range []string{"CreateVolume", "Attach", "CreateVolumeSnapshot"} {
		t.Run(op+" for good", func(t *testing.T) {
			newWorld(t, func(w *world) {
				w.fake.Plan(blockdevtest.Fault{Op: op, Err: blockdev.ErrUnsupported})
				w.create("one", spec(refA))
				s := w.await("one", imagesnapshot.PhaseFailed)
				require.Equal(t, imagesnapshot.ReasonStorageFailed, s.Status.Reason)
				w.requireStorage()
			})
		})
	}
}

// TestVolumeInUse waits with the clean-up for whoever has the volume.
func TestVolumeInUse(t *testing.T) {
	newWorld(t, func(w *world) {
		w.fake.Plan(blockdevtest.Fault{Op: "DeleteVolume", Times: 5, Err: blockdev.ErrInUse})
		w.create("one", spec(refA))
		w.settle(61 * time.Second)
		s := w.get("one")
		require.Equal(t, imagesnapshot.PhaseAvailable, s.Status.Phase, "usable before the clean-up is done")
		require.NotNil(t, s.Status.Work)
		s = w.await("one", imagesnapshot.PhaseAvailable)
		require.Contains(t, reasons(s), imagesnapshot.ReasonRetrying)
		w.requireStorage(s)
	})
}
