package main

import (
	"bytes"
	"context"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// berth runs the command and returns what it printed.
func berth(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := newRoot()
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

// fakeDaemon answers like a berthd with two disks.
type fakeDaemon struct {
	controlv1.UnimplementedControlServiceServer
	attached *controlv1.AttachDiskRequest
	detached *controlv1.DetachDiskRequest
	disks    []*controlv1.Disk
	// readAhead of Status.
	readAhead []*controlv1.ReadAhead
	hits      map[string]bool
	image     *controlv1.FindImageResponse
	// imageSnapshots, if not nil, is the other service.
	imageSnapshots *fakeImageSnapshots
}

func (f *fakeDaemon) Status(context.Context, *controlv1.StatusRequest) (*controlv1.StatusResponse, error) {
	return &controlv1.StatusResponse{
		Version: "v1.2.3", Pid: 42, Started: timestamppb.New(time.Now().Add(-2 * time.Hour)), Root: "/var/lib/berth",
		Hits: []*controlv1.HitCount{{MatchedBy: controlv1.LayerMatch_LAYER_MATCH_CHAIN_ID, Count: 12},
			{MatchedBy: controlv1.LayerMatch_LAYER_MATCH_DIFF_ID, Count: 2}},
		Misses:         []*controlv1.MissCount{{Reason: controlv1.MissReason_MISS_REASON_NOT_ON_DISK, Count: 3}},
		BytesNotPulled: 734003200, AdoptedSnapshots: 9, Disks: f.disks, ReadAhead: f.readAhead,
	}, nil
}

func (f *fakeDaemon) ListDisks(context.Context, *controlv1.ListDisksRequest) (*controlv1.ListDisksResponse, error) {
	return &controlv1.ListDisksResponse{Disks: f.disks}, nil
}

func (f *fakeDaemon) AttachDisk(_ context.Context, req *controlv1.AttachDiskRequest) (*controlv1.AttachDiskResponse, error) {
	f.attached = req
	return &controlv1.AttachDiskResponse{Disk: &controlv1.Disk{Name: "base", Layers: 15, Device: "/dev/loop3",
		IndexDigest: digest.FromString("index").String()}}, nil
}

func (f *fakeDaemon) DetachDisk(_ context.Context, req *controlv1.DetachDiskRequest) (*controlv1.DetachDiskResponse, error) {
	f.detached = req
	switch {
	case req.GetName() == "used" && req.GetDrain():
		return &controlv1.DetachDiskResponse{Holders: 4}, nil
	case req.GetName() == "used":
		return nil, status.Error(codes.FailedPrecondition, "detach disk used: 4 snapshots use its layers: remove the images that use them, or drain the disk")
	}
	return &controlv1.DetachDiskResponse{Detached: true}, nil
}

func (f *fakeDaemon) FindImage(_ context.Context, req *controlv1.FindImageRequest) (*controlv1.FindImageResponse, error) {
	if f.image == nil || req.GetReference() != "docker.io/library/app:1" {
		return nil, status.Error(codes.NotFound, "no attached disk has it")
	}
	return f.image, nil
}

func (f *fakeDaemon) ExplainLayers(_ context.Context, req *controlv1.ExplainLayersRequest) (*controlv1.ExplainLayersResponse, error) {
	resp := &controlv1.ExplainLayersResponse{}
	for i, l := range req.GetLayers() {
		if f.hits[l.GetDiffId()] {
			resp.Layers = append(resp.Layers, &controlv1.LayerAnswer{Hit: true, Disk: "base", LayerNumber: int64(i), MatchedBy: controlv1.LayerMatch_LAYER_MATCH_CHAIN_ID,
				Last: &controlv1.Event{Time: timestamppb.New(time.Unix(1700000000, 0)), Kind: controlv1.EventKind_EVENT_KIND_HIT,
					ChainId: l.GetChainId(), Disk: "base", MatchedBy: controlv1.LayerMatch_LAYER_MATCH_CHAIN_ID, Bytes: 1000}})
			continue
		}
		resp.Layers = append(resp.Layers, &controlv1.LayerAnswer{Reason: "none of 2 disks has it"})
	}
	return resp, nil
}

func (f *fakeDaemon) WatchEvents(_ *controlv1.WatchEventsRequest, stream grpc.ServerStreamingServer[controlv1.WatchEventsResponse]) error {
	at := timestamppb.New(time.Unix(1700000000, 0))
	return errOr(
		stream.Send(&controlv1.WatchEventsResponse{Event: &controlv1.Event{Time: at, Kind: controlv1.EventKind_EVENT_KIND_DISK_ATTACHED, Disk: "base"}}),
		stream.Send(&controlv1.WatchEventsResponse{Dropped: 7, Event: &controlv1.Event{Time: at, Kind: controlv1.EventKind_EVENT_KIND_MISS,
			ChainId: "sha256:1", ImageRef: "docker.io/library/app:1", Reason: "none of 2 disks has it"}}),
	)
}

func errOr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func twoDisks() []*controlv1.Disk {
	return []*controlv1.Disk{
		{Name: "base", Driver: "loop", VolumeId: "/srv/berth/base.img", Uuid: "4f8c", IndexDigest: "sha256:12", State: controlv1.DiskState_DISK_STATE_IN_USE, Serving: true,
			Device: "/dev/loop3", MountPoint: "/var/lib/berth/d/0", SizeBytes: 3 << 30, Layers: 15, LayersInUse: 7, Holders: 9,
			Since: timestamppb.New(time.Unix(1700000000, 0)), Keep: true, Configured: true},
		{Name: "late", Driver: "loop", VolumeId: "/dev/sdb", State: controlv1.DiskState_DISK_STATE_WAITING, LastError: "open /dev/sdb: no such device", Configured: true},
	}
}

// start serves the fake and returns its socket.
func start(t *testing.T, f *fakeDaemon) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	controlv1.RegisterControlServiceServer(server, f)
	if f.imageSnapshots != nil {
		imagesnapshotv1.RegisterImageSnapshotServiceServer(server, f.imageSnapshots)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-done)
	})
	return socket
}

func TestStatus(t *testing.T) {
	socket := start(t, &fakeDaemon{disks: twoDisks()})
	out, err := berth(t, "status", "--socket", socket)
	require.NoError(t, err)
	golden(t, "status", out)

	out, err = berth(t, "status", "--socket", socket, "--json")
	require.NoError(t, err)
	require.Contains(t, out, `"last_error": "open /dev/sdb: no such device"`)
	require.Contains(t, out, `"serving": false`)
	require.Contains(t, out, `"bytes_not_pulled": 734003200,`)

	require.Contains(t, out, `"count": 12,`)
	require.Contains(t, out, `"matched_by": "LAYER_MATCH_CHAIN_ID"`)
	require.Contains(t, out, `"state": "DISK_STATE_IN_USE"`)
	require.Contains(t, out, `"size_bytes": 3221225472,`)

	out, err = berth(t, "status", "--socket", start(t, &fakeDaemon{}))
	require.NoError(t, err)
	require.Contains(t, out, `no disks: attach one with "berth attach"`)
}

func TestStatusOfImports(t *testing.T) {
	disks := twoDisks()
	disks[0].ImportError = "containerd does not answer"
	disks[0].Imports = []*controlv1.ImportedImage{
		{Reference: "docker.io/library/nginx:1.27", Namespace: "k8s.io", Result: controlv1.ImportResult_IMPORT_RESULT_REGISTERED},
		{Reference: "docker.io/library/redis:7", Namespace: "k8s.io", Result: controlv1.ImportResult_IMPORT_RESULT_LEFT, Reason: "containerd has an image of this name"},
	}
	out, err := berth(t, "status", "--socket", start(t, &fakeDaemon{disks: disks}))
	require.NoError(t, err)
	golden(t, "status-imports", out)
}

func TestStatusOfReadAhead(t *testing.T) {
	run := func(image string, state controlv1.ReadAheadState, bytes int64) *controlv1.ReadAhead {
		return &controlv1.ReadAhead{Image: "docker.io/library/" + image, Disk: "base", State: state, HasAccessList: state != controlv1.ReadAheadState_READ_AHEAD_STATE_NOTHING, TotalBytes: 130 << 20,
			Bytes: bytes, Took: durationpb.New(1500 * time.Millisecond), BytesPerSecond: bytes * 2 / 3, Wanted: timestamppb.New(time.Now().Add(-time.Minute))}
	}
	list := []*controlv1.ReadAhead{run("app:1", controlv1.ReadAheadState_READ_AHEAD_STATE_RUNNING, 60<<20), run("web:1", controlv1.ReadAheadState_READ_AHEAD_STATE_WAITING, 0), run("bad:1", controlv1.ReadAheadState_READ_AHEAD_STATE_FAILED, 1<<20), run("old:1", controlv1.ReadAheadState_READ_AHEAD_STATE_NOTHING, 0)}
	list[2].Reason = "read 4096 bytes at 0 of /dev/loop3: input/output error"
	for range 10 {
		list = append(list, run("done:1", controlv1.ReadAheadState_READ_AHEAD_STATE_DONE, 130<<20))
	}
	out, err := berth(t, "status", "--socket", start(t, &fakeDaemon{disks: twoDisks(), readAhead: list}))
	require.NoError(t, err)
	golden(t, "status-read-ahead", out)
}

func TestAttach(t *testing.T) {
	f := &fakeDaemon{}
	socket := start(t, f)
	dir := t.TempDir()
	t.Chdir(dir)
	expect := digest.FromString("index").String()
	out, err := berth(t, "attach", "base.img", "--socket", socket, "--keep", "--name", "base", "--expect", expect)
	require.NoError(t, err)
	require.Equal(t, "base: 15 layers on /dev/loop3, index "+expect+"\n", out)
	require.Equal(t, filepath.Join(dir, "base.img"), f.attached.GetVolumeId())
	require.Equal(t, expect, f.attached.GetExpectIndexDigest())
	require.True(t, f.attached.GetKeep())

	_, err = berth(t, "attach", "vol-1", "--volume", "--socket", socket)
	require.NoError(t, err)
	require.Equal(t, "vol-1", f.attached.GetVolumeId())
	require.False(t, f.attached.GetKeep())

	_, err = berth(t, "attach", "snap-1", "--volume-snapshot", "--driver", "cloud", "--socket", socket)
	require.NoError(t, err)
	require.Equal(t, "snap-1", f.attached.GetVolumeSnapshotId())
	require.Equal(t, "cloud", f.attached.GetDriver())
	require.Empty(t, f.attached.GetVolumeId())

	f.imageSnapshots = &fakeImageSnapshots{}
	both := start(t, f)
	_, err = berth(t, "attach", "--image-snapshot", "nightly", "--socket", both)
	require.NoError(t, err)
	require.Equal(t, "nightly", f.attached.GetName())
	require.Equal(t, "csi", f.attached.GetDriver())
	require.Equal(t, "snap-1", f.attached.GetVolumeSnapshotId())
	require.Equal(t, "sha256:12", f.attached.GetExpectIndexDigest())
	require.Empty(t, f.attached.GetVolumeId())
	_, err = berth(t, "attach", "--image-snapshot", "none", "--socket", both)
	require.ErrorContains(t, err, `no image snapshot "none"`)

	_, err = berth(t, "attach", "x", "--volume-snapshot", "--volume", "--socket", socket)
	require.ErrorContains(t, err, "none of the others can be")

	_, err = berth(t, "attach", "x", "--expect", "latest", "--socket", socket)
	require.ErrorContains(t, err, "berth inspect")
	_, err = berth(t, "attach", "--socket", socket)
	require.ErrorContains(t, err, "accepts 1 arg")
}

func TestDetach(t *testing.T) {
	f := &fakeDaemon{disks: twoDisks()}
	socket := start(t, f)
	out, err := berth(t, "detach", "base", "--socket", socket)
	require.NoError(t, err)
	require.Equal(t, "base: detached\n", out)

	_, err = berth(t, "detach", "used", "--socket", socket)
	require.ErrorContains(t, err, "4 snapshots use its layers: remove the images")
	require.NotContains(t, err.Error(), "rpc error")

	out, err = berth(t, "detach", "used", "--drain", "--socket", socket)
	require.NoError(t, err)
	require.Equal(t, "used: draining, 4 snapshots still in use\n", out)
	require.True(t, f.detached.GetDrain())

}

func TestEvents(t *testing.T) {
	out, err := berth(t, "events", "--socket", start(t, &fakeDaemon{}))
	require.NoError(t, err)
	golden(t, "events", out)
}

func TestDaemonNotRunning(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	stale := filepath.Join(t.TempDir(), "stale")
	l, err := net.Listen("unix", stale)
	require.NoError(t, err)
	unix, ok := l.(*net.UnixListener)
	require.True(t, ok)
	unix.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	for _, socket := range []string{none, stale} {
		for _, args := range [][]string{{"status"}, {"attach", "/x"}, {"detach", "x"}, {"events"}, {"explain", "app:1"}} {
			_, err := berth(t, append(args, "--socket", socket)...)
			require.ErrorIs(t, err, errNotRunning, args)
			require.ErrorContains(t, err, "systemctl start berthd")
			require.ErrorContains(t, err, socket)
		}
	}
}

func TestHelpIsComplete(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		require.NotEmpty(t, c.Short, c.Name())
		require.False(t, strings.HasSuffix(c.Short, "."), c.Name())
	}
	out, err := berth(t, "completion", "bash")
	require.NoError(t, err)
	require.Contains(t, out, "berth")
	out, err = berth(t, "version")
	require.NoError(t, err)
	require.Contains(t, out, "layer disk format 1.1")
}
