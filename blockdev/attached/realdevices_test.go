package attached_test

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/layerdisk"
)

// partition adds a partition to a device without a table, as the kernel does for what it reads in one (ioctl BLKPG).
func partition(t *testing.T, path string, offset, length int64) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	call := func(op int32) error {
		p := unix.BlkpgPartition{Start: offset, Length: length, Pno: 1}
		arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(p)), Data: (*byte)(unsafe.Pointer(&p))}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
		if errno != 0 {
			return errno
		}
		return nil
	}
	require.NoError(t, call(unix.BLKPG_ADD_PARTITION))
	t.Cleanup(func() {
		again, err := os.Open(path)
		require.NoError(t, err)
		defer again.Close()
		f = again
		// Somebody may be looking at it just now.
		require.Eventually(t, func() bool { return call(unix.BLKPG_DEL_PARTITION) == nil }, patience, 10*time.Millisecond)
	})
	return path + "p1"
}

func TestScanRealDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := realDir(t)
	whole, inside := filepath.Join(dir, "whole"), filepath.Join(dir, "inside")
	wholeID, insideID := makeDisk(t, whole, "whole"), makeDisk(t, inside, "inside")
	data, err := os.ReadFile(inside)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(inside, append(make([]byte, mib), data...), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "blank"), make([]byte, mib), 0o600))
	data, err = os.ReadFile(whole)
	require.NoError(t, err)
	copied := filepath.Join(dir, "copied")
	require.NoError(t, os.WriteFile(copied, data, 0o600))
	cut := filepath.Join(dir, "cut")
	require.NoError(t, os.WriteFile(cut, data[:8192], 0o600))
	newer := append([]byte(nil), data...)
	binary.LittleEndian.PutUint16(newer[8:], 9)
	checksum(newer)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "newer"), newer, 0o600))

	first, second := plug(t, whole, false), plug(t, copied, true)
	part := partition(t, plug(t, inside, false).Path, mib, int64(len(data)))
	plug(t, filepath.Join(dir, "blank"), false)
	cutDevice, newerDevice := plug(t, cut, false), plug(t, filepath.Join(dir, "newer"), false)

	view, err := attached.Scan(t.Context(), attached.Options{LoopsBelow: []string{dir}})
	require.NoError(t, err)
	devices := make(map[string][]string)
	for _, d := range view.Disks {
		require.Equal(t, attached.VolumeID(d.Identity.IndexDigest), d.VolumeID)
		devices[d.Identity.UUID] = append(devices[d.Identity.UUID], d.Device.Path)
		for _, o := range d.Others {
			devices[d.Identity.UUID] = append(devices[d.Identity.UUID], o.Path)
		}
	}
	require.Len(t, devices[wholeID.UUID], 2)
	require.ElementsMatch(t, []string{first.Path, second.Path}, devices[wholeID.UUID])
	require.Equal(t, []string{part}, devices[insideID.UUID])
	refused := make(map[string]error)
	for _, r := range view.Refused {
		refused[r.Device.Path] = r.Err
	}
	require.ErrorIs(t, refused[cutDevice.Path], layerdisk.ErrCorrupt)
	require.ErrorIs(t, refused[newerDevice.Path], layerdisk.ErrVersion)
	require.ErrorContains(t, refused[newerDevice.Path], "9.0")
	require.Len(t, refused, 2)

	view, err = attached.Scan(t.Context(), attached.Options{LoopsBelow: []string{dir}, Expect: []digest.Digest{insideID.IndexDigest}})
	require.NoError(t, err)
	require.Len(t, view.Disks, 1)
	require.Len(t, view.Refused, 4)
	view, err = attached.Scan(t.Context(), attached.Options{})
	require.NoError(t, err)
	for _, d := range view.Disks {
		require.NotContains(t, d.Device.Path, "loop", "loop devices only on request")
	}
}

// checksum repairs a header's checksum after a change, so that the change itself is seen.
func checksum(disk []byte) {
	binary.LittleEndian.PutUint32(disk[96:], 0)
	binary.LittleEndian.PutUint32(disk[96:], crc32.Checksum(disk[:layerdisk.HeaderBytes], crc32.MakeTable(crc32.Castagnoli)))
}

func TestWatch(t *testing.T) {
	dir := realDir(t)
	d := open(t, dir, attached.Config{Options: attached.Options{LoopsBelow: []string{dir}}})
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	oneID, twoID := makeDisk(t, one, "one"), makeDisk(t, two, "two")
	plug(t, one, false)

	ctx, cancel := context.WithCancel(t.Context())
	views, ended := make(chan attached.View, 100), make(chan error, 1)
	go func() { ended <- d.Watch(ctx, func(v attached.View) { views <- v }) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
	})
	next := func(what string, want ...layerdisk.Identity) {
		t.Helper()
		for {
			select {
			case v := <-views:
				require.NoError(t, v.EventsErr)
				var got []layerdisk.Identity
				for _, disk := range v.Disks {
					got = append(got, disk.Identity)
				}
				if len(got) == len(want) {
					require.ElementsMatch(t, want, got)
					return
				}
			case <-time.After(patience):
				require.Fail(t, "nobody told", what)
			}
		}
	}
	next("what is there at the start", oneID)
	// Attach learns of it from the same event.
	answers := make(chan error, 1)
	go func() {
		_, err := d.Attach(t.Context(), attached.VolumeID(twoID.IndexDigest), blockdev.AttachOptions{ReadOnly: true})
		answers <- err
	}()
	loop := plug(t, two, false)
	next("a disk that is plugged in", oneID, twoID)
	require.NoError(t, <-answers)
	require.NoError(t, d.Detach(t.Context(), attached.VolumeID(twoID.IndexDigest)))
	require.NoError(t, device.DetachLoop(t.Context(), loop))
	next("a disk that is pulled out", oneID)

	// Written to where nobody says so: no event comes, but somebody who knows can ask.
	blank := filepath.Join(dir, "blank")
	data, err := os.ReadFile(two)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(blank, make([]byte, len(data)), 0o600))
	loop = plug(t, blank, false)
	f, err := os.OpenFile(loop.Path, os.O_RDWR|unix.O_SYNC, 0)
	require.NoError(t, err)
	_, err = f.Write(data)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	d.Rescan()
	next("a disk that was written in place", oneID, twoID)

	// A partition that is made later.
	three := filepath.Join(dir, "three")
	threeID := makeDisk(t, three, "three")
	data, err = os.ReadFile(three)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(three, append(make([]byte, mib), data...), 0o600))
	partition(t, plug(t, three, false).Path, mib, int64(len(data)))
	next("a partition", oneID, twoID, threeID)
}
