package csi_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/loopcsi"
)

func TestRequestsHaveWhatIsConfigured(t *testing.T) {
	f := newTap(t, loopcsi.Options{Without: []loopcsi.Feature{loopcsi.ReadOnly}})
	secrets := filepath.Join(f.dir, "secrets")
	for _, step := range []string{"provision", "snapshot", "publish", "stage", "node"} {
		require.NoError(t, os.MkdirAll(filepath.Join(secrets, step), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(secrets, step, "token"), []byte("of "+step), 0o600))
	}
	d := f.open(t, func(c *csi.Config) {
		c.Secrets = csi.Secrets{
			Provision: filepath.Join(secrets, "provision"), VolumeSnapshot: filepath.Join(secrets, "snapshot"),
			ControllerPublish: filepath.Join(secrets, "publish"), NodeStage: filepath.Join(secrets, "stage"),
			NodePublish: filepath.Join(secrets, "node"),
		}
	})
	id := f.volume(t, d, "v")
	dev, err := d.Attach(t.Context(), id, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.True(t, dev.ReadOnly, "though the driver attached it for writing")
	require.NoError(t, d.Detach(t.Context(), id))
	s, err := d.CreateVolumeSnapshot(t.Context(), "s", id)
	require.NoError(t, err)
	require.NoError(t, d.DeleteVolumeSnapshot(t.Context(), s.ID))
	require.NoError(t, d.DeleteVolume(t.Context(), id))

	for method, want := range map[string]string{
		"CreateVolume": "provision", "DeleteVolume": "provision", "CreateSnapshot": "snapshot", "DeleteSnapshot": "snapshot",
		"ControllerPublishVolume": "publish", "ControllerUnpublishVolume": "publish", "NodeStageVolume": "stage",
		"NodePublishVolume": "node",
	} {
		_, req := f.asked(method)
		got := req.(interface{ GetSecrets() map[string]string }).GetSecrets()
		require.Equal(t, map[string]string{"token": "of " + want}, got, method)
	}
	_, req := f.asked("CreateVolume")
	create := req.(*spec.CreateVolumeRequest)
	require.Equal(t, "node-1", create.GetAccessibilityRequirements().GetRequisite()[0].GetSegments()[loopcsi.TopologyKey])
	require.NotNil(t, create.GetVolumeCapabilities()[0].GetBlock())
	_, req = f.asked("ControllerPublishVolume")
	require.False(t, req.(*spec.ControllerPublishVolumeRequest).GetReadonly(), "the driver said that it cannot")
	require.Equal(t, "node-1", req.(*spec.ControllerPublishVolumeRequest).GetNodeId())
}

func TestConfiguredTopologyAndParameters(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	elsewhere := f.open(t, func(c *csi.Config) { c.Topology = map[string]string{loopcsi.TopologyKey: "node-2"} })
	_, err := elsewhere.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: mib})
	require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
	wrong := f.open(t, func(c *csi.Config) { c.Parameters = map[string]string{"type": "gp3"} })
	_, err = wrong.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: mib})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	require.ErrorContains(t, err, "no parameters")
}

func TestRestoreParametersAreForVolumesOfSnapshotsOnly(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	plain := f.open(t, nil)
	id := f.volume(t, plain, "v")
	s, err := plain.CreateVolumeSnapshot(t.Context(), "s", id)
	require.NoError(t, err)
	d := f.open(t, func(c *csi.Config) {
		c.Directory += "-restore"
		c.Parameters = map[string]string{"type": "gp3", "rate": "0"}
		c.RestoreParameters = map[string]string{"rate": "300"}
	})
	parameters := func(req blockdev.CreateVolumeRequest) map[string]string {
		_, err := d.CreateVolume(t.Context(), req)
		require.True(t, errdefs.IsInvalidArgument(err), "the driver has no parameters: %v", err)
		_, asked := f.asked("CreateVolume")
		return asked.(*spec.CreateVolumeRequest).GetParameters()
	}
	require.Equal(t, map[string]string{"type": "gp3", "rate": "300"},
		parameters(blockdev.CreateVolumeRequest{Name: "r", SizeBytes: mib, SourceVolumeSnapshotID: s.ID}))
	require.Equal(t, map[string]string{"type": "gp3", "rate": "0"},
		parameters(blockdev.CreateVolumeRequest{Name: "e", SizeBytes: mib}), "what is configured is not changed by a restore before")
	require.NoError(t, plain.DeleteVolumeSnapshot(t.Context(), s.ID))
	require.NoError(t, plain.DeleteVolume(t.Context(), id))
}

// Parameters of a request reach the driver beside those of the configuration, which count more; also when the making is
// finished later by somebody who only knows the name.
func TestParametersOfARequest(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	configured := func(c *csi.Config) {
		c.Parameters, c.RestoreParameters = map[string]string{"encrypted": "true", "type": "gp3"}, map[string]string{"rate": "300"}
	}
	d := f.open(t, configured)
	taken, ignored := d.TakeParameters(map[string]string{
		"csi/iops": "4000", "csi/encrypted": "false", "csi/rate": "1", "csi/type": "gp3", "csi/": "x", "eipID": "eip-1", "csi": "x",
	})
	require.Equal(t, map[string]string{"iops": "4000", "type": "gp3"}, taken)
	require.ElementsMatch(t, []string{"csi/encrypted", "csi/rate", "csi/", "eipID", "csi"}, ignored)

	want := map[string]string{"encrypted": "true", "type": "gp3", "iops": "4000"}
	f.set(failing("CreateVolume", 1, codes.DeadlineExceeded), nil)
	_, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: mib,
		Parameters: map[string]string{"iops": "4000", "encrypted": "false"}})
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	_, first := f.asked("CreateVolume")
	require.Equal(t, want, first.(*spec.CreateVolumeRequest).GetParameters())
	require.NoError(t, d.Close())
	d = f.open(t, configured)
	_, err = d.ListVolumes(t.Context())
	require.NoError(t, err)
	n, again := f.asked("CreateVolume")
	require.Equal(t, 2, n)
	require.Equal(t, want, again.(*spec.CreateVolumeRequest).GetParameters())
	require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")), "the loop driver refuses all parameters")
}

func TestCheckProvisioning(t *testing.T) {
	require.NoError(t, newTap(t, loopcsi.Options{}).open(t, nil).CheckProvisioning(t.Context()))
	bare := newTap(t, loopcsi.Options{Without: []loopcsi.Feature{loopcsi.Snapshots}}).open(t, nil)
	err := bare.CheckProvisioning(t.Context())
	require.ErrorIs(t, err, blockdev.ErrUnsupported)
	require.ErrorContains(t, err, "it has no volume snapshots (CREATE_DELETE_SNAPSHOT)")
	dead := filepath.Join(t.TempDir(), "none")
	nobody := openDriver(t, csi.Config{Node: dead, Directory: t.TempDir(), Timeout: time.Second})
	err = nobody.CheckProvisioning(t.Context())
	require.ErrorIs(t, err, blockdev.ErrThrottled)
	require.ErrorContains(t, err, "nobody listens on "+dead+": start the CSI driver")
	require.NotContains(t, err.Error(), "busy")
}

// TestDriverThatDoesSomethingElse answers with success and has not done what was asked for.
func TestDriverThatDoesSomethingElse(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	d := f.open(t, nil)
	id := f.volume(t, d, "v")
	s, err := d.CreateVolumeSnapshot(t.Context(), "s", id)
	require.NoError(t, err)

	f.set(func(_ string, req any) error {
		if c, ok := req.(*spec.CreateVolumeRequest); ok {
			c.VolumeContentSource = nil
		}
		return nil
	}, nil)
	_, err = d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "blank", SourceVolumeSnapshotID: s.ID})
	require.True(t, errdefs.IsNotImplemented(err), "a blank volume in place of the snapshot's: %v", err)

	f.set(func(_ string, req any) error {
		if c, ok := req.(*spec.CreateVolumeRequest); ok {
			c.CapacityRange = &spec.CapacityRange{RequiredBytes: mib / 2}
		}
		return nil
	}, nil)
	_, err = d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "small", SizeBytes: mib})
	require.True(t, errdefs.IsInternal(err), "%v", err)
	f.set(nil, nil)
	list, err := d.ListVolumes(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1, "volumes that are not what was asked for are deleted")

	// A driver in a container whose mounts do not reach the host.
	f.set(nil, func(method string, _ any) error {
		if method != "NodePublishVolume" {
			return nil
		}
		_, req := f.asked(method)
		return unix.Unmount(req.(*spec.NodePublishVolumeRequest).GetTargetPath(), 0)
	})
	_, err = d.Attach(t.Context(), id, blockdev.AttachOptions{ReadOnly: true})
	require.ErrorContains(t, err, "propagation")
	f.set(nil, nil)
	require.NoError(t, d.DeleteVolumeSnapshot(t.Context(), s.ID))
	require.NoError(t, d.DeleteVolume(t.Context(), id), "a refused attachment is undone")
	require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")))
}

func TestDriverIsNotThereYet(t *testing.T) {
	f := newTap(t, loopcsi.Options{MaxVolumes: 2})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	early := f.open(t, func(c *csi.Config) { c.Node = filepath.Join(f.dir, "later") })
	_, err := early.Attach(ctx, "v", blockdev.AttachOptions{})
	require.True(t, errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err), "%v", err)
	require.NoError(t, early.Detach(t.Context(), "v"), "it needs no driver to know that")
	require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")))

	require.NoError(t, os.Symlink(f.socket, filepath.Join(f.dir, "later")))
	require.Eventually(t, func() bool { return early.Connect(t.Context()) == nil }, 20*time.Second, 50*time.Millisecond)
	require.Equal(t, 2, early.Properties().MaxAttachments)

	slow := f.open(t, nil)
	f.set(nil, func(_ string, resp any) error {
		if p, ok := resp.(*spec.ProbeResponse); ok {
			p.Ready = wrapperspb.Bool(false)
		}
		return nil
	})
	require.True(t, errdefs.IsUnavailable(slow.Connect(t.Context())))
	f.set(nil, nil)
	require.NoError(t, slow.Connect(t.Context()))
}

func TestTwoDriversMixedUp(t *testing.T) {
	f, other := newTap(t, loopcsi.Options{}), newTap(t, loopcsi.Options{})
	d := f.open(t, func(c *csi.Config) { c.Controller = other.socket })
	other.set(nil, func(_ string, resp any) error {
		if info, ok := resp.(*spec.GetPluginInfoResponse); ok {
			info.Name = "other.example.com"
		}
		return nil
	})
	err := d.Connect(t.Context())
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	require.ErrorContains(t, err, "other.example.com")
	other.set(nil, nil)
	require.NoError(t, d.Connect(t.Context()), "two sockets of one driver")
}

func TestOpenRefuses(t *testing.T) {
	_, err := csi.Open(csi.Config{Node: "relative", Directory: t.TempDir()})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	_, err = csi.Open(csi.Config{Node: "/n", Controller: "tcp://1.2.3.4:5", Directory: t.TempDir()})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}
