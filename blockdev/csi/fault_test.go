package csi_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/loopcsi"
)

func TestRetriesWhatIsWorthIt(t *testing.T) {
	for _, tc := range []struct {
		method string
		code   codes.Code
		is     func(error) bool
		asked  int
	}{
		{"CreateVolume", codes.Aborted, nil, 3},
		{"CreateVolume", codes.Unavailable, nil, 3},
		{"CreateVolume", codes.ResourceExhausted, errdefs.IsResourceExhausted, 1},
		{"CreateVolume", codes.Internal, errdefs.IsInternal, 1},
		{"CreateVolume", codes.DeadlineExceeded, nil, 3},
		{"CreateVolume", codes.PermissionDenied, errdefs.IsPermissionDenied, 1},
		{"NodeStageVolume", codes.Aborted, nil, 3},
		{"NodePublishVolume", codes.ResourceExhausted, errdefs.IsResourceExhausted, 1},
		{"ControllerPublishVolume", codes.FailedPrecondition, errdefs.IsFailedPrecondition, 1},
	} {
		t.Run(tc.method+" "+tc.code.String(), func(t *testing.T) {
			t.Parallel()
			f := newTap(t, loopcsi.Options{})
			d := f.openPatient(t)
			f.set(failing(tc.method, 2, tc.code), nil)
			v, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: mib})
			if err == nil {
				_, err = d.Attach(t.Context(), v.ID, blockdev.AttachOptions{ReadOnly: true})
			}
			n, _ := f.asked(tc.method)
			require.Equal(t, tc.asked, n)
			if tc.is == nil {
				require.NoError(t, err)
			} else {
				require.True(t, tc.is(err), "%v", err)
				require.ErrorContains(t, err, "made up")
			}
			f.set(nil, nil)
			if v.ID != "" {
				require.NoError(t, d.Detach(t.Context(), v.ID))
				require.NoError(t, d.DeleteVolume(t.Context(), v.ID))
			}
			require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")), "what was refused is undone")
		})
	}
}

// TestLostAnswer: the volume was made, and nobody was told.
func TestLostAnswer(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	d := f.open(t, nil)
	f.set(nil, failing("CreateVolume", 1, codes.DeadlineExceeded))
	_, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "lost", SizeBytes: mib})
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.NoError(t, d.Close())

	d = f.open(t, nil)
	list, err := d.ListVolumes(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "lost", list[0].Name)
	_, err = d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "lost", SizeBytes: 2 * mib})
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)

	// The volume is attached, and nobody was told.
	f.set(nil, failing("NodePublishVolume", 1, codes.DeadlineExceeded))
	_, err = d.Attach(t.Context(), list[0].ID, blockdev.AttachOptions{ReadOnly: true})
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.True(t, errdefs.IsFailedPrecondition(d.DeleteVolume(t.Context(), list[0].ID)), "it may be attached")
	dev, err := d.Attach(t.Context(), list[0].ID, blockdev.AttachOptions{})
	require.NoError(t, err, "what was begun the other way is undone first")
	require.False(t, dev.ReadOnly)
	require.NoError(t, d.Detach(t.Context(), list[0].ID))

	// The volume is deleted, and nobody was told.
	f.set(nil, failing("DeleteVolume", 1, codes.DeadlineExceeded))
	require.True(t, errdefs.IsUnavailable(d.DeleteVolume(t.Context(), list[0].ID)))
	require.NoError(t, d.DeleteVolume(t.Context(), list[0].ID))
	require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")))
}

// TestCrashAtEveryStep loses each request once, before and after the driver has done it, and goes on in a new process:
// forward with the same call, or back.
func TestCrashAtEveryStep(t *testing.T) {
	steps := []string{
		"CreateVolume", "ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume",
		"NodeUnpublishVolume", "NodeUnstageVolume", "ControllerUnpublishVolume", "DeleteVolume",
	}
	for _, step := range steps {
		for _, done := range []bool{false, true} {
			for _, back := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s done %t back %t", step, done, back), func(t *testing.T) {
					t.Parallel()
					crashAt(t, step, done, back)
				})
			}
		}
	}
}

func crashAt(t *testing.T, step string, done, back bool) {
	t.Helper()
	f := newTap(t, loopcsi.Options{})
	lost := failing(step, 1, codes.DeadlineExceeded)
	if done {
		f.set(nil, lost)
	} else {
		f.set(lost, nil)
	}
	crashes := 0
	// again repeats what was lost with a new client, as after a crash.
	again := func(do func(*csi.Driver) error) {
		d := f.open(t, nil)
		err := do(d)
		if err != nil {
			crashes++
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			require.NoError(t, d.Close())
			d = f.open(t, nil)
			err = do(d)
		}
		require.NoError(t, err)
		require.NoError(t, d.Close())
	}
	var id string
	again(func(d *csi.Driver) error {
		v, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: mib})
		id = v.ID
		return err
	})
	again(func(d *csi.Driver) error {
		if crashes > 0 && back {
			return nil // given up, whatever of it is done
		}
		dev, err := d.Attach(t.Context(), id, blockdev.AttachOptions{ReadOnly: true})
		require.Equal(t, err == nil, dev.ReadOnly)
		return err
	})
	again(func(d *csi.Driver) error { return d.Detach(t.Context(), id) })
	again(func(d *csi.Driver) error { return d.DeleteVolume(t.Context(), id) })
	require.Equal(t, 1, crashes)
	require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")))
	volumes, err := f.driver.ListVolumes(t.Context())
	require.NoError(t, err)
	require.Empty(t, volumes)
}

// A volume snapshot whose making nobody was told of is found again by its name, so that it can be deleted. One that
// turns out never to have been made leaves nothing.
func TestLostAnswerAboutSnapshot(t *testing.T) {
	for name, without := range map[string][]loopcsi.Feature{
		"listed": nil, "asked for": {loopcsi.List}, "asked to make again": {loopcsi.List, loopcsi.Get},
	} {
		for _, made := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, made %t", name, made), func(t *testing.T) {
				t.Parallel()
				f := newTap(t, loopcsi.Options{Without: without})
				d := f.open(t, nil)
				source := f.volume(t, d, "source")
				lost := failing("CreateSnapshot", 1, codes.DeadlineExceeded)
				if made {
					f.set(nil, lost)
				} else {
					f.set(lost, nil)
				}
				_, err := d.CreateVolumeSnapshot(t.Context(), "lost", source)
				require.True(t, errdefs.IsUnavailable(err), "%v", err)
				require.NoError(t, d.Close())
				if !made {
					require.NoError(t, f.driver.DeleteVolume(t.Context(), source))
				}

				d = f.open(t, nil)
				list, err := d.ListVolumeSnapshots(t.Context())
				require.NoError(t, err)
				if made {
					require.Len(t, list, 1)
					require.Equal(t, "lost", list[0].Name)
					require.NoError(t, d.DeleteVolumeSnapshot(t.Context(), list[0].ID))
				}
				list, err = d.ListVolumeSnapshots(t.Context())
				require.NoError(t, err)
				require.Empty(t, list)
				require.NoError(t, d.DeleteVolume(t.Context(), source))
				left, err := f.driver.ListVolumeSnapshots(t.Context())
				require.NoError(t, err)
				require.Empty(t, left)
				require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")))
			})
		}
	}
}

// TestRepeatedAfterItsSnapshotHasGone: the caller's journal lost the answer, not ours.
func TestRepeatedAfterItsSnapshotHasGone(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	d := f.open(t, nil)
	source := f.volume(t, d, "source")
	s, err := d.CreateVolumeSnapshot(t.Context(), "s", source)
	require.NoError(t, err)
	req := blockdev.CreateVolumeRequest{Name: "v", SourceVolumeSnapshotID: s.ID}
	v, err := d.CreateVolume(t.Context(), req)
	require.NoError(t, err)
	require.NoError(t, d.DeleteVolumeSnapshot(t.Context(), s.ID))
	again, err := d.CreateVolume(t.Context(), req)
	require.NoError(t, err)
	require.Equal(t, v, again)

	// Deleted by others, it cannot be made again.
	require.NoError(t, f.driver.DeleteVolume(t.Context(), v.ID))
	_, err = d.CreateVolume(t.Context(), req)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	require.NoError(t, d.DeleteVolume(t.Context(), v.ID), "deleting what has gone forgets it")
	require.NoError(t, d.DeleteVolume(t.Context(), source))
	require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")))
}

// TestNeverMade: nobody knows whether the volume was made, and it turns out that it cannot be.
func TestNeverMade(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	d := f.open(t, nil)
	f.set(failing("CreateVolume", 1, codes.DeadlineExceeded), nil)
	_, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: mib})
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	f.set(failing("CreateVolume", 1, codes.ResourceExhausted), nil)
	list, err := d.ListVolumes(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
	require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")))
}
