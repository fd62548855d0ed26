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
	"berth.dev/berth/blockdev/interceptor"
	"berth.dev/berth/blockdev/retry"
)

func TestFake(t *testing.T) {
	for name, limit := range map[string]int{"no limit": 0, "limit": 3} {
		t.Run(name, func(t *testing.T) { suite(t, limit, blockdevtest.Misbehaviour{}) })
	}
}

// A Fake that misbehaves in a way that a patient client does not notice is still a driver.
func TestFakeMisbehaving(t *testing.T) {
	unnoticed := []string{
		"throttling", "latency", "lost answers", "snapshots ready late", "devices appear late", "device names change", "volumes are larger",
	}
	for _, name := range unnoticed {
		t.Run(name, func(t *testing.T) { suite(t, 0, blockdevtest.Faults(1, name)) })
	}
	t.Run("together", func(t *testing.T) { suite(t, 3, blockdevtest.Faults(1, unnoticed...)) })
}

func suite(t *testing.T, limit int, m blockdevtest.Misbehaviour) {
	var fake *blockdevtest.Fake
	blockdevtest.Suite(t, blockdevtest.Config{
		New: func(*testing.T) blockdev.Attacher {
			fake = blockdevtest.NewFake(limit)
			fake.Misbehave(m)
			return interceptor.Wrap(fake, comesBack)
		},
		Reopen: func(_ *testing.T, old blockdev.Attacher) blockdev.Attacher { return old },
		Open: func(dev blockdev.Device, write bool) (blockdevtest.Content, error) {
			return fake.OpenDevice(dev, write)
		},
		Use: func(t *testing.T, dev blockdev.Device) func() {
			release, err := fake.Use(dev.Path)
			require.NoError(t, err)
			return release
		},
		Run: func(t *testing.T, test func(*testing.T)) { synctest.Test(t, test) },
		// Each of the waits of package retry may be used up several times; all of it is the test's own time.
		Patience: time.Hour,
	})
}

// comesBack repeats an operation as package retry does, and comes back by itself as its callers do.
func comesBack(ctx context.Context, operation string, do func(context.Context) error) (err error) {
	for range retry.Attempts {
		if err = retry.Intercept(ctx, operation, do); !blockdev.Retryable(err) {
			break
		}
	}
	return err
}

func TestFaults(t *testing.T) {
	fake := blockdevtest.NewFake(0)
	v, err := fake.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: 4096})
	require.NoError(t, err)
	attach := func() error {
		_, err := fake.Attach(t.Context(), v.ID, blockdev.AttachOptions{ReadOnly: true})
		return err
	}
	attached := func() int {
		all, err := fake.Attached(t.Context())
		require.NoError(t, err)
		return len(all)
	}

	fake.Plan(blockdevtest.Fault{Call: 2, Err: blockdev.ErrThrottled})
	require.Zero(t, attached())
	require.True(t, errdefs.IsUnavailable(attach()))
	require.Zero(t, attached())
	require.NoError(t, attach())
	require.NoError(t, fake.Detach(t.Context(), v.ID))

	fake.Plan(blockdevtest.Fault{Op: "Attach", Times: 1, Err: blockdev.ErrThrottled, Done: true})
	require.ErrorIs(t, attach(), blockdev.ErrThrottled)
	require.Equal(t, 1, attached(), "done, but answered with an error")
	require.NoError(t, attach())

	fake.OnCall(func(ctx context.Context, a blockdevtest.Action) error {
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, fake.Detach(ctx, v.ID), context.Canceled)
	actions := fake.Actions()
	last := actions[len(actions)-1]
	require.Equal(t, "Detach", last.Op)
	require.Equal(t, v.ID, last.Object)
	require.ErrorIs(t, last.Err, context.Canceled)
}
