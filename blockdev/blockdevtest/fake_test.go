package blockdevtest_test

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
)

func TestFake(t *testing.T) {
	for name, limit := range map[string]int{"no limit": 0, "limit": 3} {
		t.Run(name, func(t *testing.T) {
			var fake *blockdevtest.Fake
			blockdevtest.Suite(t, blockdevtest.Config{
				New: func(*testing.T) blockdev.Attacher {
					fake = blockdevtest.NewFake(limit)
					return fake
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
			})
		})
	}
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
