package attached

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/sysblock/sysblocktest"
	"berth.dev/berth/layerdisk"
)

func TestPartitions(t *testing.T) {
	tr := sysblocktest.New(t)
	disk := virtio("vdb", "s")
	disk.Partitions = []string{"vdb1", "vdb2"}
	tr.Add(disk)
	s := newScanner(Options{Roots: tr.Roots})
	holding(s, map[string]string{"vdb2": "layers"})
	got, err := find(t, s, "serial:s")
	require.NoError(t, err)
	require.Equal(t, []string{"vdb2"}, got)
	s.headers.forget("")
	holding(s, nil)
	_, err = find(t, s, "serial:s")
	require.ErrorContains(t, err, "none of them is a layer disk")
}

func TestRescanOfSCSIHosts(t *testing.T) {
	tr := sysblocktest.New(t)
	tr.File("class/scsi_host/host0/scan", "")
	tr.File("class/scsi_host/host1/scan", "")
	require.NoError(t, askSCSIHosts(tr.Roots))
	for _, host := range []string{"host0", "host1"} {
		got, err := os.ReadFile(filepath.Join(tr.Roots.Sys, "class", "scsi_host", host, "scan"))
		require.NoError(t, err)
		require.Equal(t, "- - -", string(got))
	}
}

func TestScan(t *testing.T) {
	tr := sysblocktest.New(t)
	system(tr)
	disk := virtio("vdb", "s")
	disk.Partitions = []string{"vdb1", "vdb2"}
	tr.Add(disk)
	tr.Add(plain("vdc"))
	tr.Add(plain("vdd"))
	tr.Add(plain("vde"))
	tr.Add(plain("vdf"))
	tr.Add(plain("vdg"))
	tr.Add(sysblocktest.Disk{Name: "fd0", Major: 2})
	tr.Add(sysblocktest.Disk{Name: "ram0", Major: 1})
	tr.Add(sysblocktest.Disk{Name: "mtdblock0", Major: 31})
	tr.Add(sysblocktest.Disk{Name: "nbd0", Sectors: -1})
	tr.Add(sysblocktest.Disk{Name: "dm-0", Attributes: map[string]string{"dm/uuid": "x", "dm/suspended": "1"}})
	tr.Add(sysblocktest.Disk{Name: "dm-1", Attributes: map[string]string{"dm/uuid": "mpath-1"}})
	tr.Add(sysblocktest.Disk{Name: "sda", Holders: []string{"dm-1"}})
	tr.Add(sysblocktest.Disk{Name: "loop9", Major: 7, Attributes: map[string]string{"loop/backing_file": "/srv/in"}})
	tr.Add(sysblocktest.Disk{Name: "loop8", Major: 7, Attributes: map[string]string{"loop/backing_file": "/srvx/in"}})
	tr.Mount(13, "rw") // vdg: the system has minors 1 to 5, vdb and its partitions 6 to 8
	s := newScanner(Options{Roots: tr.Roots, LoopsBelow: []string{"/srv/"}})
	reads := holding(s, map[string]string{"vdb2": "a", "vdc": "b", "vdd": "corrupt", "vde": "version", "vdg": "written", "dm-1": "b",
		"sda": "b", "loop9": "c", "loop8": "d", "fd0": "x", "ram0": "x", "mtdblock0": "x", "nbd0": "x", "dm-0": "x", "sr0": "x", "zram0": "x", "vda": "x"})
	check := func() {
		t.Helper()
		view, err := s.scan(t.Context())
		require.NoError(t, err)
		got := make(map[string]string)
		for _, d := range view.Disks {
			names := []string{d.Device.Name}
			for _, o := range d.Others {
				names = append(names, o.Name)
			}
			got[d.Identity.IndexDigest.String()] = strings.Join(names, " ")
			require.Equal(t, VolumeID(d.Identity.IndexDigest), d.VolumeID)
		}
		require.Equal(t, map[string]string{
			header("a").IndexDigest.String(): "vdb2",
			header("b").IndexDigest.String(): "dm-1 vdc", // the multipath device before the copy
			header("c").IndexDigest.String(): "loop9",
		}, got)
		require.Len(t, view.Refused, 2)
		require.Equal(t, "vdd", view.Refused[0].Device.Name)
		require.ErrorIs(t, view.Refused[0].Err, layerdisk.ErrCorrupt)
		require.ErrorIs(t, view.Refused[1].Err, layerdisk.ErrVersion)
	}
	check()
	want := map[string]int{"vdb1": 1, "vdb2": 1, "vdc": 1, "vdd": 1, "vde": 1, "vdf": 1, "dm-1": 1, "loop9": 1}
	require.Equal(t, want, reads, "nothing else is opened")
	check()
	require.Equal(t, want, reads, "what was read is known")
	s.headers.forget("vdc")
	check()
	want["vdc"]++
	require.Equal(t, want, reads)

	tr.Remove("vdc")
	tr.Add(plain("vdh"))
	view, err := s.scan(t.Context())
	require.NoError(t, err)
	require.Len(t, view.Disks, 3)
	want["vdh"]++
	require.Equal(t, want, reads)
}

func TestExpect(t *testing.T) {
	tr := sysblocktest.New(t)
	tr.Add(plain("vdb"))
	tr.Add(plain("vdc"))
	s := newScanner(Options{Roots: tr.Roots, Expect: []digest.Digest{header("a").IndexDigest}})
	holding(s, map[string]string{"vdb": "a", "vdc": "b"})
	view, err := s.scan(t.Context())
	require.NoError(t, err)
	require.Len(t, view.Disks, 1)
	require.Equal(t, "vdb", view.Disks[0].Device.Name)
	require.Len(t, view.Refused, 1)
	require.ErrorIs(t, view.Refused[0].Err, layerdisk.ErrOtherDisk)
	require.ErrorContains(t, view.Refused[0].Err, header("b").IndexDigest.String())
	_, err = find(t, s, VolumeID(header("b").IndexDigest))
	require.ErrorIs(t, err, layerdisk.ErrOtherDisk)
	_, err = find(t, s, VolumeID(header("c").IndexDigest))
	require.ErrorIs(t, err, layerdisk.ErrOtherDisk)
	got, err := find(t, s, VolumeID(header("a").IndexDigest))
	require.NoError(t, err)
	require.Equal(t, []string{"vdb"}, got)
}

// TestUnread: a device that gives an error is asked again, one that answered is not.
func TestUnread(t *testing.T) {
	tr := sysblocktest.New(t)
	tr.Add(plain("vdb"))
	tr.Add(plain("vdc"))
	s := newScanner(Options{Roots: tr.Roots})
	disks := map[string]string{"vdb": "broken"}
	reads := holding(s, disks)
	for range 3 {
		view, err := s.scan(t.Context())
		require.NoError(t, err)
		require.Empty(t, view.Disks)
		require.True(t, view.unread)
	}
	require.Equal(t, map[string]int{"vdb": 3, "vdc": 1}, reads)
	disks["vdb"] = "a"
	view, err := s.scan(t.Context())
	require.NoError(t, err)
	require.Len(t, view.Disks, 1)
	require.False(t, view.unread)
}
