package doctor_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/internal/boltfile"
	"berth.dev/berth/node/containerdconfig"
	"berth.dev/berth/node/doctor"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// TestRunningContainerd: what the containerd that runs says is compared with its configuration.
func TestRunningContainerd(t *testing.T) {
	const name = "running containerd"
	past, future := time.Now().Add(-24*time.Hour), time.Now().Add(time.Hour)
	for what, tc := range map[string]struct {
		change  func(c *fakeContainerd, p *introspectionapi.Plugin)
		written time.Time
		status  doctor.Status
		says    string
	}{
		"as configured":      {func(*fakeContainerd, *introspectionapi.Plugin) {}, past, doctor.OK, "as its configuration says"},
		"forgotten restart":  {func(c *fakeContainerd, _ *introspectionapi.Plugin) { c.plugins = nil }, past, doctor.Fail, "before its configuration named"},
		"other socket":       {func(_ *fakeContainerd, p *introspectionapi.Plugin) { p.Exports["address"] = "/x" }, past, doctor.Fail, "it asks /x"},
		"other capabilities": {func(_ *fakeContainerd, p *introspectionapi.Plugin) { p.Capabilities = nil }, past, doctor.Fail, "it has capabilities []"},
		"other root":         {func(_ *fakeContainerd, p *introspectionapi.Plugin) { p.Exports["root"] = "/y" }, past, doctor.Fail, `root = "/y" in exports`},
		"plugin failed": {func(_ *fakeContainerd, p *introspectionapi.Plugin) {
			p.InitErr = &rpcstatus.Status{Code: 2, Message: "no luck"}
		}, past, doctor.Fail, "no luck"},
		"file changed": {func(*fakeContainerd, *introspectionapi.Plugin) {}, future, doctor.Warn, "was changed after it was started"},
	} {
		t.Run(what, func(t *testing.T) {
			n, _, _ := healthyNode(t)
			plugin := &introspectionapi.Plugin{
				Type: "io.containerd.snapshotter.v1", ID: "berth", Capabilities: containerdconfig.Newest().Capabilities(),
				Exports: map[string]string{"address": n.Socket, "root": n.Root, "enable_remote_snapshot_annotations": "true"},
			}
			c := &fakeContainerd{version: "v2.4.2", plugins: []*introspectionapi.Plugin{plugin}, pid: uint64(os.Getpid())}
			tc.change(c, plugin)
			n.ContainerdAddress += "2"
			serve(t, n.ContainerdAddress, func(s *grpc.Server) {
				versionapi.RegisterVersionServer(s, c)
				introspectionapi.RegisterIntrospectionServer(s, c)
			})
			require.NoError(t, os.Chtimes(n.ContainerdConfig, tc.written, tc.written))
			var got []doctor.Result
			for _, r := range doctor.Run(t.Context(), n) {
				if r.Name == name {
					got = append(got, r)
				}
			}
			require.Len(t, got, 1)
			require.Equal(t, tc.status, got[0].Status, got[0].Detail)
			require.Contains(t, got[0].Detail, tc.says)
			require.Equal(t, tc.status == doctor.OK, got[0].Advice == "")
		})
	}
}

// TestDamagedDatabases: while berthd is down its databases are read, and each has its own advice.
func TestDamagedDatabases(t *testing.T) {
	n, _, _ := healthyNode(t)
	n.Socket += "x"
	require.NoError(t, os.MkdirAll(n.Root, 0o700))
	look := func() map[string]doctor.Result {
		found := map[string]doctor.Result{}
		for _, r := range doctor.Run(t.Context(), n) {
			if file, ok := strings.CutPrefix(r.Name, "database "); ok {
				found[file] = r
			}
		}
		return found
	}
	require.Empty(t, look(), "none is there yet")
	files := []string{"metadata.db", "stage.db", "imagesnapshots.db"}
	for _, file := range files {
		db, err := bolt.Open(filepath.Join(n.Root, file), 0o600, nil)
		require.NoError(t, err)
		require.NoError(t, db.Update(func(tx *bolt.Tx) error {
			outer, err := tx.CreateBucket([]byte("outer"))
			if err != nil {
				return err
			}
			inner, err := outer.CreateBucket([]byte("inner"))
			for i := range uint64(20000) {
				err = errors.Join(err, inner.Put(binary.BigEndian.AppendUint64(nil, i), make([]byte, 20)))
			}
			return err
		}))
		require.NoError(t, db.Close())
	}
	require.Empty(t, look(), "all are well")

	size := func(file string) int64 {
		info, err := os.Stat(filepath.Join(n.Root, file))
		require.NoError(t, err)
		return info.Size()
	}
	require.NoError(t, os.Truncate(filepath.Join(n.Root, "metadata.db"), 0))
	require.NoError(t, os.Truncate(filepath.Join(n.Root, "stage.db"), size("stage.db")/3))
	f, err := os.OpenFile(filepath.Join(n.Root, "imagesnapshots.db"), os.O_WRONLY, 0)
	require.NoError(t, err)
	junk := make([]byte, size("imagesnapshots.db")-5*4096)
	for i := range junk {
		junk[i] = 0xa5
	}
	_, err = f.WriteAt(junk, 4*4096)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	found := look()
	for _, file := range files {
		require.Equal(t, doctor.Fail, found[file].Status, file)
		require.Contains(t, found[file].Detail, "is damaged")
		require.NotEmpty(t, found[file].Advice, file)
	}
	require.NotEqual(t, found["stage.db"].Advice, found["metadata.db"].Advice)

	// berthd has set one aside.
	aside, err := boltfile.SetAside(filepath.Join(n.Root, "stage.db"), time.Unix(0, 0))
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(n.Root, "metadata.db")))
	require.NoError(t, os.Remove(filepath.Join(n.Root, "imagesnapshots.db")))
	found = look()
	require.Len(t, found, 1)
	require.Equal(t, doctor.Warn, found["stage.db"].Status)
	require.Contains(t, found["stage.db"].Detail, aside)
	require.Contains(t, found["stage.db"].Advice, "berth attach")
}

// TestDisksAway: a disk that is away is a failure only if somebody wants it.
func TestDisksAway(t *testing.T) {
	n, berthd, _ := healthyNode(t)
	away := func(d *controlv1.Disk) doctor.Result {
		d.Name, d.State, d.LastError = "base", controlv1.DiskState_DISK_STATE_FAILED, "no such device"
		berthd.disks = []*controlv1.Disk{d}
		for _, r := range doctor.Run(t.Context(), n) {
			if r.Name == "disk base" {
				return r
			}
		}
		return doctor.Result{}
	}
	require.Equal(t, doctor.Warn, away(&controlv1.Disk{}).Status)
	require.Equal(t, doctor.Fail, away(&controlv1.Disk{Configured: true}).Status)
	require.Equal(t, doctor.Fail, away(&controlv1.Disk{Keep: true}).Status)
	used := away(&controlv1.Disk{Holders: 3})
	require.Equal(t, doctor.Fail, used.Status)
	require.Contains(t, used.Detail, "failed: no such device; images and containers use its layers (snapshots: 3)")
}

// TestDeletedFile: a disk whose file was deleted serves for the last time.
func TestDeletedFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n, berthd, _ := healthyNode(t)
	file := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.Background(), loop)) })
	berthd.disks = []*controlv1.Disk{{Name: "base", Device: loop.Path, Serving: true}}
	require.Empty(t, found(doctor.Run(t.Context(), n)))
	require.NoError(t, os.Remove(file))
	bad := found(doctor.Run(t.Context(), n))
	require.Len(t, bad, 1)
	require.Equal(t, doctor.Warn, bad[0].Status)
	require.Contains(t, bad[0].Detail, file+" was deleted")
	require.Contains(t, bad[0].Advice, loop.Path)
}
