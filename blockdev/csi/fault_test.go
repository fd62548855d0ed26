package csi_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/blockdev/loopdev"
)

// tap is a CSI driver that does not always do as it is told.
type tap struct {
	dir, socket string
	driver      *loopdev.Driver

	// mu guards what follows.
	mu sync.Mutex
	// requests by their method's name.
	requests map[string][]any
	// before decides about a request that is not passed on, after about the answer to one that was.
	before func(method string, req any) error
	after  func(method string, resp any) error
}

func newTap(t *testing.T, options loopcsi.Options) *tap {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "berth-csi-") //nolint:usetesting // sockets need a shorter path
	require.NoError(t, err)
	f := &tap{dir: dir, socket: filepath.Join(dir, "s"), requests: map[string][]any{}}
	f.driver, err = loopdev.Open(filepath.Join(dir, "storage"))
	require.NoError(t, err)
	options.NodeID = "node-1"
	server, err := loopcsi.New(f.driver, options)
	require.NoError(t, err)
	g := grpc.NewServer(grpc.UnaryInterceptor(f.intercept))
	server.Register(g)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", f.socket)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		require.NoError(t, <-done)
		attached, err := f.driver.Attached(context.Background())
		require.NoError(t, err)
		require.Empty(t, attached, "volumes are left attached")
		require.NoError(t, f.driver.Close())
		require.NoError(t, os.RemoveAll(dir))
	})
	return f
}

func (f *tap) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
	f.mu.Lock()
	f.requests[method] = append(f.requests[method], req)
	before, after := f.before, f.after
	f.mu.Unlock()
	if before != nil {
		if err := before(method, req); err != nil {
			return nil, err
		}
	}
	resp, err := handler(ctx, req)
	if err == nil && after != nil {
		err = after(method, resp)
	}
	return resp, err
}

func (f *tap) set(before, after func(string, any) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}

// asked is how often, and with what the last time.
func (f *tap) asked(method string) (int, any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.requests[method])
	if n == 0 {
		return 0, nil
	}
	return n, f.requests[method][n-1]
}

// failing answers the first n requests of the method with the code.
func failing(method string, n int, code codes.Code) func(string, any) error {
	var mu sync.Mutex
	return func(m string, _ any) error {
		mu.Lock()
		defer mu.Unlock()
		if m != method || n == 0 {
			return nil
		}
		n--
		return status.Error(code, "made up")
	}
}

func (f *tap) open(t *testing.T, change func(*csi.Config)) *csi.Driver {
	t.Helper()
	config := csi.Config{Node: f.socket, Directory: filepath.Join(f.dir, "node"), Timeout: 5 * time.Second}
	if change != nil {
		change(&config)
	}
	return openDriver(t, config)
}

func (f *tap) volume(t *testing.T, d *csi.Driver, name string) string {
	t.Helper()
	v, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: mib})
	require.NoError(t, err)
	return v.ID
}

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
		{"CreateVolume", codes.DeadlineExceeded, errdefs.IsUnavailable, 1},
		{"CreateVolume", codes.PermissionDenied, errdefs.IsPermissionDenied, 1},
		{"NodeStageVolume", codes.Aborted, nil, 3},
		{"NodePublishVolume", codes.ResourceExhausted, errdefs.IsResourceExhausted, 1},
		{"ControllerPublishVolume", codes.FailedPrecondition, errdefs.IsFailedPrecondition, 1},
	} {
		t.Run(tc.method+" "+tc.code.String(), func(t *testing.T) {
			t.Parallel()
			f := newTap(t, loopcsi.Options{})
			d := f.open(t, nil)
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
			if tc.code != codes.DeadlineExceeded {
				require.Empty(t, leftovers(t, filepath.Join(f.dir, "node")), "what was refused is undone")
			}
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

// TestRepeatedAfterItsSnapshotHasGone: the caller's journal lost the answer, not ours.
func TestRepeatedAfterItsSnapshotHasGone(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	d := f.open(t, nil)
	source := f.volume(t, d, "source")
	s, err := d.CreateSnapshot(t.Context(), "s", source)
	require.NoError(t, err)
	req := blockdev.CreateVolumeRequest{Name: "v", SourceSnapshotID: s.ID}
	v, err := d.CreateVolume(t.Context(), req)
	require.NoError(t, err)
	require.NoError(t, d.DeleteSnapshot(t.Context(), s.ID))
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

func TestRequestsHaveWhatIsConfigured(t *testing.T) {
	f := newTap(t, loopcsi.Options{Without: []loopcsi.Feature{loopcsi.ReadOnly}})
	secrets := filepath.Join(f.dir, "secrets")
	for _, step := range []string{"provision", "snapshot", "publish", "stage", "node"} {
		require.NoError(t, os.MkdirAll(filepath.Join(secrets, step), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(secrets, step, "token"), []byte("of "+step), 0o600))
	}
	d := f.open(t, func(c *csi.Config) {
		c.Secrets = csi.Secrets{
			Provision: filepath.Join(secrets, "provision"), Snapshot: filepath.Join(secrets, "snapshot"),
			ControllerPublish: filepath.Join(secrets, "publish"), NodeStage: filepath.Join(secrets, "stage"),
			NodePublish: filepath.Join(secrets, "node"),
		}
	})
	id := f.volume(t, d, "v")
	dev, err := d.Attach(t.Context(), id, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.True(t, dev.ReadOnly, "though the driver attached it for writing")
	require.NoError(t, d.Detach(t.Context(), id))
	s, err := d.CreateSnapshot(t.Context(), "s", id)
	require.NoError(t, err)
	require.NoError(t, d.DeleteSnapshot(t.Context(), s.ID))
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
	s, err := plain.CreateSnapshot(t.Context(), "s", id)
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
		parameters(blockdev.CreateVolumeRequest{Name: "r", SizeBytes: mib, SourceSnapshotID: s.ID}))
	require.Equal(t, map[string]string{"type": "gp3", "rate": "0"},
		parameters(blockdev.CreateVolumeRequest{Name: "e", SizeBytes: mib}), "what is configured is not changed by a restore before")
	require.NoError(t, plain.DeleteSnapshot(t.Context(), s.ID))
	require.NoError(t, plain.DeleteVolume(t.Context(), id))
}

// TestDriverThatDoesSomethingElse answers with success and has not done what was asked for.
func TestDriverThatDoesSomethingElse(t *testing.T) {
	f := newTap(t, loopcsi.Options{})
	d := f.open(t, nil)
	id := f.volume(t, d, "v")
	s, err := d.CreateSnapshot(t.Context(), "s", id)
	require.NoError(t, err)

	f.set(func(_ string, req any) error {
		if c, ok := req.(*spec.CreateVolumeRequest); ok {
			c.VolumeContentSource = nil
		}
		return nil
	}, nil)
	_, err = d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "blank", SourceSnapshotID: s.ID})
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
	require.NoError(t, d.DeleteSnapshot(t.Context(), s.ID))
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
