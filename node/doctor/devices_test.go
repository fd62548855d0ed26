package doctor_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/node/doctor"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

func TestDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n, berthd, _ := healthyNode(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	n.Devices = attached.Options{LoopsBelow: []string{dir}}
	find := func() []doctor.Result {
		t.Helper()
		var found []doctor.Result
		for _, r := range doctor.Run(t.Context(), n) {
			if r.Name == "block devices" || r.Name == "disk mine" {
				found = append(found, r)
			}
		}
		return found
	}
	require.Equal(t, []doctor.Result{{Name: "block devices", Status: doctor.OK, Detail: "0 layer disks among them, berthd has all"}}, find())

	file := filepath.Join(dir, "disk")
	_, id := layerdisktest.Disk(t, file, layerdisk.FileSystemEROFS, nil, layerdisktest.Image{Reference: "docker.io/library/a:1", Layers: []string{"a"}})
	plug := func(file string) device.Loop {
		t.Helper()
		loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.Background(), loop)) })
		return loop
	}
	loop := plug(file)
	found := find()
	require.Len(t, found, 1)
	require.Equal(t, doctor.Warn, found[0].Status)
	require.Contains(t, found[0].Detail, loop.Path+": layer disk "+id.UUID)
	require.Contains(t, found[0].Advice, "--volume index:"+id.IndexDigest.String())

	berthd.disks = []*controlv1.Disk{{Name: "mine", Uuid: id.UUID}}
	require.Equal(t, []doctor.Result{{Name: "block devices", Status: doctor.OK, Detail: "1 layer disks among them, berthd has all"}}, find())

	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "copy"), data, 0o600))
	data[40]++ // breaks the checksum
	require.NoError(t, os.WriteFile(filepath.Join(dir, "corrupt"), data, 0o600))
	plug(filepath.Join(dir, "copy"))
	corrupt := plug(filepath.Join(dir, "corrupt"))
	found = find()
	require.Len(t, found, 2)
	require.Equal(t, "disk mine", found[0].Name)
	require.Contains(t, found[0].Detail, "have the same layer disk, one is used")
	require.Equal(t, doctor.Warn, found[1].Status)
	require.Contains(t, found[1].Detail, corrupt.Path+" has a berth header, but: layer disk is corrupt")
}
