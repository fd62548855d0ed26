package sysblock_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/sysblock"
	"berth.dev/berth/blockdev/sysblock/sysblocktest"
)

// page83 has two designators: a binary one, and the vendor's text.
func page83(text string) string {
	payload := append([]byte{0x01, 0x03, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7, 0x02, 0x01, 0, byte(len(text))}, text...)
	return string(append([]byte{0, 0x83, 0, byte(len(payload))}, payload...))
}

func TestList(t *testing.T) {
	tr := sysblocktest.New(t)
	tr.Add(sysblocktest.Disk{Name: "vda", Attributes: map[string]string{"serial": "0123456789abcdef0123"}, Partitions: []string{"vda1", "vda2"}})
	tr.Add(sysblocktest.Disk{Name: "nvme0n1", Major: 259, Attributes: map[string]string{"device/serial": "vol0123          \n",
		"device/model": "Amazon Elastic Block Store              \n", "nsid": "1\n", "wwid": "nvme.1d0f-76\n"}})
	tr.Add(sysblocktest.Disk{Name: "sdb", Major: 8, SCSI: "3:0:1:5", Holders: []string{"dm-0"}, Attributes: map[string]string{
		"device/vendor": "Google  \n", "device/model": "PersistentDisk  \n", "device/wwid": "t10.Google  PersistentDisk  data\n",
		"device/vpd_pg80": "\x00\x80\x00\x06  s-1  ", "device/vpd_pg83": page83("Google  PersistentDisk  data")}})
	tr.Add(sysblocktest.Disk{Name: "dm-0", Attributes: map[string]string{"dm/uuid": "mpath-36001\n", "dm/suspended": "1\n"}})
	tr.Add(sysblocktest.Disk{Name: "loop3", Major: 7, Attributes: map[string]string{"loop/backing_file": "/srv/a b.img\n"}, Partitions: []string{"loop3p1"}})
	tr.Add(sysblocktest.Disk{Name: "rbd0", Attributes: map[string]string{"size": "0"}})
	tr.File("bus/rbd/devices/0/pool", "images\n")
	tr.File("bus/rbd/devices/0/name", "base\n")
	tr.File("bus/rbd/devices/0/current_snap", "v1\n")
	tr.Add(sysblocktest.Disk{Name: "cciss!c0d0", Attributes: map[string]string{"hidden": "1"}})
	// A device whose directory is gone: it left meanwhile.
	require.NoError(t, os.Symlink("nowhere", filepath.Join(tr.Roots.Sys, "class", "block", "vdz")))

	all, err := sysblock.List(tr.Roots)
	require.NoError(t, err)
	byName := make(map[string]sysblock.Device)
	var names []string
	for _, d := range all {
		byName[d.Name] = d
		names = append(names, d.Name)
	}
	require.Equal(t, []string{"cciss!c0d0", "dm-0", "loop3", "loop3p1", "nvme0n1", "rbd0", "sdb", "vda", "vda1", "vda2"}, names)
	require.Equal(t, sysblock.Device{Name: "vda", Path: filepath.Join(tr.Roots.Dev, "vda"), Number: unix.Mkdev(254, 1), Sequence: 1,
		SizeBytes: 8 << 30, Partitions: []string{"vda1", "vda2"}, IDs: sysblock.IDs{Serial: "0123456789abcdef0123"}}, byName["vda"])
	require.Equal(t, sysblock.Device{Name: "vda2", Path: filepath.Join(tr.Roots.Dev, "vda2"), Number: unix.Mkdev(254, 3), Sequence: 1,
		SizeBytes: 1 << 20, Parent: "vda"}, byName["vda2"])
	require.Equal(t, sysblock.IDs{Serial: "vol0123", Model: "Amazon Elastic Block Store", WWID: "nvme.1d0f-76"}, byName["nvme0n1"].IDs)
	require.Equal(t, 1, byName["nvme0n1"].Kind.Namespace)
	sdb := byName["sdb"]
	require.Equal(t, sysblock.IDs{Vendor: "Google", Model: "PersistentDisk", WWID: "t10.Google  PersistentDisk  data", Serial: "s-1",
		Designators: []string{"Google  PersistentDisk  data"}}, sdb.IDs)
	require.Equal(t, &sysblock.SCSIAddress{Host: 3, Channel: 0, Target: 1, LUN: 5}, sdb.Kind.SCSI)
	require.Equal(t, []string{"dm-0"}, sdb.Holders)
	require.Equal(t, sysblock.Kind{Mapper: "mpath-36001", Suspended: true}, byName["dm-0"].Kind)
	require.Equal(t, "/srv/a b.img", byName["loop3"].Kind.Loop)
	require.Equal(t, "/srv/a b.img", byName["loop3p1"].Kind.Loop)
	require.Equal(t, "images/base@v1", byName["rbd0"].Kind.RBD)
	require.Zero(t, byName["rbd0"].SizeBytes)
	require.True(t, byName["cciss!c0d0"].Hidden)
}

func TestListRefusesNonsense(t *testing.T) {
	tr := sysblocktest.New(t)
	tr.Add(sysblocktest.Disk{Name: "vda", Attributes: map[string]string{"size": "many"}})
	_, err := sysblock.List(tr.Roots)
	require.ErrorContains(t, err, "vda")
	_, err = sysblock.List(sysblock.Roots{Sys: t.TempDir()})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestWritten(t *testing.T) {
	tr := sysblocktest.New(t)
	tr.Mount(1, "rw,discard")
	tr.Mount(2, "ro")
	tr.Mount(3, "rw")
	written, err := sysblock.Written(tr.Roots)
	require.NoError(t, err)
	require.Equal(t, map[uint64]bool{unix.Mkdev(254, 1): true, unix.Mkdev(254, 3): true}, written)
	require.NoError(t, os.Remove(filepath.Join(filepath.Dir(tr.Roots.Proc), "swaps")))
	_, err = sysblock.Written(tr.Roots)
	require.NoError(t, err, "a kernel without swap")
}

// TestNode looks at the machine itself.
func TestNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	listener, err := sysblock.Listen()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	file := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.Background(), loop)) })
	name := filepath.Base(loop.Path)
	wait := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for {
			e, err := listener.Next(ctx)
			require.NoError(t, err)
			if e.Name == name {
				require.Equal(t, "change", e.Action)
				return
			}
		}
	}
	find := func() sysblock.Device {
		t.Helper()
		all, err := sysblock.List(sysblock.Roots{})
		require.NoError(t, err)
		for _, d := range all {
			if d.Name == name {
				return d
			}
		}
		return sysblock.Device{}
	}
	wait()
	first := find()
	number, err := device.Number(loop.Path)
	require.NoError(t, err)
	require.Equal(t, number, first.Number)
	require.Equal(t, loop.Path, first.Path)
	require.Equal(t, file, first.Kind.Loop)
	require.EqualValues(t, 1<<20, first.SizeBytes)
	require.True(t, first.Same(find()))
	require.NoError(t, device.DetachLoop(t.Context(), loop))
	wait()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = listener.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
}
