package loopcsi_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/blockdev/loopdev"
)

const mib = 1 << 20

// newServer is for what the CSI project's suite (test/csisanity) does not ask.
func newServer(t *testing.T, options loopcsi.Options) (*loopcsi.Server, *loopdev.Driver) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	driver, err := loopdev.Open(filepath.Join(t.TempDir(), "storage"))
	require.NoError(t, err)
	t.Cleanup(func() {
		attached, err := driver.Attached(context.Background())
		require.NoError(t, err)
		for id := range attached {
			t.Errorf("volume %s is left attached", id)
			require.NoError(t, driver.Detach(context.Background(), id))
		}
		require.NoError(t, driver.Close())
	})
	options.NodeID = "node"
	s, err := loopcsi.New(driver, options)
	require.NoError(t, err)
	return s, driver
}

func block() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

func create(t *testing.T, s *loopcsi.Server, name string, r *csi.CapacityRange) (*csi.Volume, error) {
	t.Helper()
	resp, err := s.Controller().CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: name, CapacityRange: r, VolumeCapabilities: []*csi.VolumeCapability{block()}})
	return resp.GetVolume(), err
}

func remove(t *testing.T, s *loopcsi.Server, id string) {
	t.Helper()
	_, err := s.Controller().DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
	require.NoError(t, err)
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []loopcsi.Options{
		{}, {NodeID: strings.Repeat("n", 257)}, {NodeID: "n", MaxVolumes: -1}, {NodeID: "n", Without: []loopcsi.Feature{"snapshot"}},
	} {
		_, err := loopcsi.New(nil, o)
		require.True(t, errdefs.IsInvalidArgument(err), "%+v: %v", o, err)
	}
}

func TestSizes(t *testing.T) {
	s, _ := newServer(t, loopcsi.Options{})
	for _, tc := range []struct {
		low, high, want int64
		code            codes.Code
	}{
		{0, 0, 1 << 30, codes.OK},
		{mib, 0, mib, codes.OK},
		{mib + 1, 0, mib + 4096, codes.OK},
		{0, mib, mib, codes.OK},
		{mib + 1, mib + 2, 0, codes.OutOfRange},
		{2 * mib, mib, 0, codes.OutOfRange},
		{-1, 0, 0, codes.OutOfRange},
	} {
		v, err := create(t, s, "v", &csi.CapacityRange{RequiredBytes: tc.low, LimitBytes: tc.high})
		require.Equal(t, tc.code, status.Code(err), "%+v: %v", tc, err)
		require.Equal(t, tc.want, v.GetCapacityBytes(), "%+v", tc)
		if err == nil {
			again, err := create(t, s, "v", &csi.CapacityRange{RequiredBytes: tc.want / 2, LimitBytes: 2 * tc.want})
			require.NoError(t, err, "what fits is returned")
			require.Equal(t, v.GetVolumeId(), again.GetVolumeId())
			remove(t, s, v.GetVolumeId())
		}
	}
}

func TestAnyName(t *testing.T) {
	s, _ := newServer(t, loopcsi.Options{})
	ids := map[string]bool{}
	names := []string{"plain", "../../etc", "/dev/sda", ".new-x", "two words", "ünï", strings.Repeat("x", 128)}
	for _, name := range names {
		v, err := create(t, s, name, &csi.CapacityRange{RequiredBytes: mib})
		require.NoError(t, err, name)
		again, err := create(t, s, name, &csi.CapacityRange{RequiredBytes: mib})
		require.NoError(t, err, name)
		require.Equal(t, v.GetVolumeId(), again.GetVolumeId())
		require.NotContains(t, v.GetVolumeId(), "/")
		ids[v.GetVolumeId()] = true
	}
	require.Len(t, ids, len(names))
	for id := range ids {
		remove(t, s, id)
	}
	for _, name := range []string{"", "a\nb", "\xff", strings.Repeat("x", 129)} {
		_, err := create(t, s, name, nil)
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%q: %v", name, err)
	}
}

// TestPathsAreNoVolumes: the loop driver attaches files of the host by their path, clients of the CSI driver must not.
func TestPathsAreNoVolumes(t *testing.T) {
	s, driver := newServer(t, loopcsi.Options{})
	file := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.WriteFile(file, make([]byte, mib), 0o600))
	target := filepath.Join(t.TempDir(), "target")
	_, err := s.Controller().ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: file, NodeId: "node", VolumeCapability: block(), Readonly: true})
	require.Equal(t, codes.NotFound, status.Code(err), "%v", err)
	_, err = s.Node().NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: file, StagingTargetPath: target, VolumeCapability: block()})
	require.Equal(t, codes.NotFound, status.Code(err), "%v", err)
	_, err = s.Node().NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: file, TargetPath: target, VolumeCapability: block()})
	require.Equal(t, codes.NotFound, status.Code(err), "%v", err)
	_, err = s.Controller().CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: file})
	require.Equal(t, codes.NotFound, status.Code(err), "%v", err)
	remove(t, s, file)
	require.FileExists(t, file)
	require.NoFileExists(t, target)
	attached, err := driver.Attached(t.Context())
	require.NoError(t, err)
	require.Empty(t, attached)
}

// TestUnpublishLeavesOthersAlone: only what can be a published device is taken away.
func TestUnpublishLeavesOthersAlone(t *testing.T) {
	s, _ := newServer(t, loopcsi.Options{})
	dir := t.TempDir()
	file, sub := filepath.Join(dir, "file"), filepath.Join(dir, "sub")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	require.NoError(t, os.Mkdir(sub, 0o700))
	for _, target := range []string{file, sub} {
		_, err := s.Node().NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: target})
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%v", err)
	}
	require.FileExists(t, file)
	require.DirExists(t, sub)
}

func TestPublishedDevice(t *testing.T) {
	s, driver := newServer(t, loopcsi.Options{})
	v, err := create(t, s, "v", &csi.CapacityRange{RequiredBytes: mib})
	require.NoError(t, err)
	id, target := v.GetVolumeId(), filepath.Join(t.TempDir(), "target")
	resp, err := s.Controller().ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: "node", VolumeCapability: block()})
	require.NoError(t, err)
	publish := &csi.NodePublishVolumeRequest{
		VolumeId: id, TargetPath: target, StagingTargetPath: target + "-staging", VolumeCapability: block(), PublishContext: resp.GetPublishContext(), Readonly: true,
	}
	for range 2 {
		_, err = s.Node().NodePublishVolume(t.Context(), publish)
		require.NoError(t, err)
	}
	readonly, err := device.ReadOnly(target)
	require.NoError(t, err)
	require.True(t, readonly, "though the controller attached it for writing")

	unpublish := &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: "node"}
	_, err = s.Controller().ControllerUnpublishVolume(t.Context(), unpublish)
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "it is published: %v", err)
	_, err = s.Controller().ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: "elsewhere"})
	require.NoError(t, err)

	// As after a reboot: the mount and the device have gone, the file that was mounted on is left.
	require.NoError(t, unix.Unmount(target, 0))
	require.NoError(t, driver.Detach(t.Context(), id))
	_, err = s.Node().NodePublishVolume(t.Context(), publish)
	require.NoError(t, err)
	_, err = device.Number(target)
	require.NoError(t, err)

	_, err = s.Node().NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
	require.NoError(t, err)
	require.NoFileExists(t, target)
	_, err = s.Controller().ControllerUnpublishVolume(t.Context(), unpublish)
	require.NoError(t, err)
	remove(t, s, id)
}

// A volume snapshot that takes its time: it is there, and no volume is made of it before it is ready.
func TestSnapshotTime(t *testing.T) {
	s, driver := newServer(t, loopcsi.Options{SnapshotTime: time.Hour})
	_, err := create(t, s, "v", &csi.CapacityRange{RequiredBytes: mib})
	require.NoError(t, err)
	made, err := s.Controller().CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "v"})
	require.NoError(t, err)
	require.False(t, made.GetSnapshot().GetReadyToUse())
	copy := &csi.CreateVolumeRequest{Name: "copy", VolumeCapabilities: []*csi.VolumeCapability{block()}, VolumeContentSource: &csi.VolumeContentSource{
		Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: "s"}},
	}}
	_, err = s.Controller().CreateVolume(t.Context(), copy)
	require.Equal(t, codes.Aborted, status.Code(err), err)
	quick, err := loopcsi.New(driver, loopcsi.Options{NodeID: "node"})
	require.NoError(t, err)
	got, err := quick.Controller().GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: "s"})
	require.NoError(t, err)
	require.True(t, got.GetSnapshot().GetReadyToUse())
	_, err = quick.Controller().CreateVolume(t.Context(), copy)
	require.NoError(t, err)
	for _, id := range []string{"v", "copy"} {
		remove(t, s, id)
	}
}

// A machine that plays two nodes: both have all volumes, one of them each at a time, also over a restart.
func TestTwoNodes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nodes.json")
	a, driver := newServer(t, loopcsi.Options{MaxVolumes: 1, Holders: file})
	b, err := a.ForNode("other")
	require.NoError(t, err)
	_, err = a.ForNode("")
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	publish := func(s *loopcsi.Server, id, node string) error {
		_, err := s.Controller().ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: node, VolumeCapability: block()})
		return err
	}
	unpublish := func(s *loopcsi.Server, id, node string) {
		_, err := s.Controller().ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node})
		require.NoError(t, err)
	}
	for _, name := range []string{"one", "two"} {
		_, err := create(t, a, name, &csi.CapacityRange{RequiredBytes: mib})
		require.NoError(t, err)
	}
	info, err := b.Node().NodeGetInfo(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, "other", info.GetNodeId())
	mine, err := a.Node().NodeGetInfo(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, mine.GetAccessibleTopology(), info.GetAccessibleTopology(), "it is one machine's storage")

	require.NoError(t, publish(a, "one", "node"))
	require.Equal(t, codes.FailedPrecondition, status.Code(publish(b, "one", "other")))
	_, err = b.Node().NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: "one", StagingTargetPath: "/s", VolumeCapability: block()})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "the node asks too, as after a reboot")
	require.Equal(t, codes.ResourceExhausted, status.Code(publish(a, "two", "node")))
	require.NoError(t, publish(b, "two", "other"), "the limit is that of a node")
	unpublish(b, "one", "other")
	list, err := b.Controller().ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	require.NoError(t, err)
	require.Equal(t, []string{"node"}, list.GetEntries()[0].GetStatus().GetPublishedNodeIds(), "another node's detach leaves it alone")
	require.Equal(t, []string{"other"}, list.GetEntries()[1].GetStatus().GetPublishedNodeIds())

	again, err := loopcsi.New(driver, loopcsi.Options{NodeID: "node", Holders: file})
	require.NoError(t, err)
	b, err = again.ForNode("other")
	require.NoError(t, err)
	require.Equal(t, codes.FailedPrecondition, status.Code(publish(b, "one", "other")), "a restart forgets nothing")
	unpublish(b, "one", "")
	require.NoError(t, publish(b, "one", "other"), "without a node it left the one that had it")
	unpublish(b, "one", "other")
	unpublish(b, "two", "other")
	remove(t, again, "one")
	remove(t, again, "two")
}
