package interceptor_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/interceptor"
)

// Callers ask a driver for its roles by a type assertion: it has those of the driver inside, no more and no fewer.
func TestWrapKeepsRoles(t *testing.T) {
	type (
		attacher    struct{ blockdev.Attacher }
		provisioner struct {
			blockdev.Attacher
			blockdev.Provisioner
		}
		snapshotter struct {
			blockdev.Attacher
			blockdev.VolumeSnapshotter
		}
	)
	f := blockdevtest.NewFake(0)
	for name, tc := range map[string]struct {
		driver         blockdev.Attacher
		makes, freezes bool
	}{
		"all":          {f, true, true},
		"attacher":     {attacher{f}, false, false},
		"volumes":      {provisioner{f, f}, true, false},
		"snapshots":    {snapshotter{f, f}, false, true},
		"wrapped once": {interceptor.Wrap(provisioner{f, f}), true, false},
	} {
		wrapped := interceptor.Wrap(tc.driver)
		_, makes := wrapped.(blockdev.Provisioner)
		_, freezes := wrapped.(blockdev.VolumeSnapshotter)
		require.Equal(t, tc.makes, makes, name)
		require.Equal(t, tc.freezes, freezes, name)
	}
}

// Every operation passes the interceptors in their order, with its name, and its answer comes back.
func TestWrapPassesEveryOperation(t *testing.T) {
	f := blockdevtest.NewFake(0)
	var passed []string
	note := func(who string) interceptor.Interceptor {
		return func(ctx context.Context, operation string, do func(context.Context) error) error {
			passed = append(passed, who+" "+operation)
			return do(ctx)
		}
	}
	d, ok := interceptor.Wrap(f, note("outer"), note("inner")).(interface {
		blockdev.Attacher
		blockdev.Provisioner
		blockdev.VolumeSnapshotter
	})
	require.True(t, ok)
	require.Equal(t, f.Properties(), d.Properties())

	ctx := t.Context()
	v, err := d.CreateVolume(ctx, blockdev.CreateVolumeRequest{Name: "v", SizeBytes: 1 << 20})
	require.NoError(t, err)
	require.Equal(t, "v", v.Name)
	got, err := d.GetVolume(ctx, v.ID)
	require.NoError(t, err)
	require.Equal(t, v, got)
	list, err := d.ListVolumes(ctx)
	require.NoError(t, err)
	require.Equal(t, []blockdev.Volume{v}, list)
	dev, err := d.Attach(ctx, v.ID, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.True(t, dev.ReadOnly)
	attached, err := d.Attached(ctx)
	require.NoError(t, err)
	require.Equal(t, map[string]blockdev.Device{v.ID: dev}, attached)
	require.NoError(t, d.Detach(ctx, v.ID))
	s, err := d.CreateVolumeSnapshot(ctx, "s", v.ID)
	require.NoError(t, err)
	require.Equal(t, v.ID, s.SourceVolumeID)
	gotSnapshot, err := d.GetVolumeSnapshot(ctx, s.ID)
	require.NoError(t, err)
	require.Equal(t, s, gotSnapshot)
	snapshots, err := d.ListVolumeSnapshots(ctx)
	require.NoError(t, err)
	require.Equal(t, []blockdev.VolumeSnapshot{s}, snapshots)
	require.NoError(t, d.DeleteVolumeSnapshot(ctx, s.ID))
	require.NoError(t, d.DeleteVolume(ctx, v.ID))
	require.ErrorIs(t, d.Detach(ctx, "none"), nil)
	_, err = d.GetVolume(ctx, v.ID)
	require.ErrorIs(t, err, blockdev.ErrNotFound)

	var want []string
	for _, op := range []string{"CreateVolume", "GetVolume", "ListVolumes", "Attach", "Attached", "Detach", "CreateVolumeSnapshot",
		"GetVolumeSnapshot", "ListVolumeSnapshots", "DeleteVolumeSnapshot", "DeleteVolume", "Detach", "GetVolume"} {
		want = append(want, "outer "+op, "inner "+op)
	}
	require.Equal(t, want, passed)
}
