package doctor_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth.dev/berth/node/containerdconfig"
	"berth.dev/berth/node/doctor"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

type fakeBerthd struct {
	controlv1.UnimplementedControlServiceServer
	root  string
	disks []*controlv1.Disk
}

func (f *fakeBerthd) Status(context.Context, *controlv1.StatusRequest) (*controlv1.StatusResponse, error) {
	return &controlv1.StatusResponse{Version: "v1", Pid: 7, Root: f.root, Disks: f.disks}, nil
}

type fakeContainerd struct {
	versionapi.UnimplementedVersionServer
	introspectionapi.UnimplementedIntrospectionServer
	version string
	plugins []*introspectionapi.Plugin
	pid     uint64
}

func (f *fakeContainerd) Plugins(context.Context, *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: f.plugins}, nil
}

func (f *fakeContainerd) Server(context.Context, *emptypb.Empty) (*introspectionapi.ServerResponse, error) {
	return &introspectionapi.ServerResponse{Pid: f.pid}, nil
}

func (f *fakeContainerd) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: f.version}, nil
}

func serve(t *testing.T, path string, register func(*grpc.Server)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(path, 0o600))
	server := grpc.NewServer()
	register(server)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-done)
	})
}

// healthyNode has everything as it should be, with stand-ins for the daemons.
func healthyNode(t *testing.T) (doctor.Node, *fakeBerthd, *health.Server) {
	t.Helper()
	dir := t.TempDir()
	n := doctor.Node{
		Root: filepath.Join(dir, "root"), Socket: filepath.Join(dir, "b"), ContainerdAddress: filepath.Join(dir, "c"),
		Containerd: filepath.Join(dir, "containerd"), ContainerdConfig: filepath.Join(dir, "config.toml"),
		Snapshotter: "berth", Platform: "linux/amd64", CRI: true,
		ProcFileSystems: filepath.Join(dir, "filesystems"), LoopControl: filepath.Join(dir, "loop-control"), Modules: filepath.Join(dir, "modules"),
	}
	write := func(path, text string, mode os.FileMode) { require.NoError(t, os.WriteFile(path, []byte(text), mode)) }
	write(n.ProcFileSystems, "nodev\tsysfs\nnodev\toverlay\n\terofs\n", 0o644)
	write(n.LoopControl, "", 0o600)
	snippet, err := containerdconfig.Snippet(containerdconfig.Settings{Version: containerdconfig.Newest(), Snapshotter: "berth",
		Socket: n.Socket, Root: n.Root, Platform: n.Platform, CRI: true})
	require.NoError(t, err)
	write(n.ContainerdConfig, string(snippet), 0o600)
	// A containerd that prints its configuration file, as "config dump" does.
	write(n.Containerd, "#!/bin/sh\nif [ \"$1\" = --version ]; then echo containerd x 2.4.2; else cat \"$2\"; fi\n", 0o755)
	b, alive := &fakeBerthd{root: n.Root}, health.NewServer()
	serve(t, n.Socket, func(s *grpc.Server) {
		controlv1.RegisterControlServiceServer(s, b)
		grpc_health_v1.RegisterHealthServer(s, alive)
	})
	serve(t, n.ContainerdAddress, func(s *grpc.Server) { versionapi.RegisterVersionServer(s, &fakeContainerd{version: "v2.4.2"}) })
	return n, b, alive
}

// found returns the results that are not OK, without those about tools and about this machine's file systems.
func found(results []doctor.Result) []doctor.Result {
	var bad []doctor.Result
	for _, r := range results {
		switch r.Name {
		case "mkfs.ext4", "igzip", "space", "overlay on root", "id-mapped mounts":
		default:
			if r.Status != doctor.OK {
				bad = append(bad, r)
			}
		}
	}
	return bad
}

func TestHealthyNode(t *testing.T) {
	n, _, _ := healthyNode(t)
	results := doctor.Run(t.Context(), n)
	require.Empty(t, found(results))
	for _, r := range results {
		require.NotEmpty(t, r.Name)
		require.NotEmpty(t, r.Detail, r.Name)
		require.Equal(t, r.Status == doctor.OK, r.Advice == "", "%s: %s", r.Name, r.Detail)
	}
}

func TestRealMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n, _, _ := healthyNode(t)
	for _, r := range doctor.Run(t.Context(), n) {
		if r.Name == "overlay on root" || r.Name == "id-mapped mounts" {
			t.Logf("%s %s: %s", r.Status, r.Name, r.Detail)
			require.NotEqual(t, "not checked", r.Detail)
		}
	}
	require.NoDirExists(t, n.Root, "a check makes nothing")
}

func TestSickNodes(t *testing.T) {
	type node = *doctor.Node
	for name, tc := range map[string]struct {
		change func(t *testing.T, n node, b *fakeBerthd, alive *health.Server)
		status doctor.Status
		name   string
		want   string
	}{
		"no erofs": {func(t *testing.T, n node, _ *fakeBerthd, _ *health.Server) {
			require.NoError(t, os.WriteFile(n.ProcFileSystems, []byte("nodev\toverlay\nnodev\tnoterofs\n"), 0o600))
		}, doctor.Warn, "file system erofs", "neither known"},
		"no overlay": {func(t *testing.T, n node, _ *fakeBerthd, _ *health.Server) {
			require.NoError(t, os.WriteFile(n.ProcFileSystems, []byte("\terofs\n"), 0o600))
		}, doctor.Fail, "file system overlay", "neither known"},
		"no loop": {func(t *testing.T, n node, _ *fakeBerthd, _ *health.Server) {
			require.NoError(t, os.Remove(n.LoopControl))
		}, doctor.Warn, "loop devices", "no such file"},
		"no berthd": {func(_ *testing.T, n node, _ *fakeBerthd, _ *health.Server) { n.Socket += "x" },
			doctor.Fail, "berthd", "not running"},
		"open socket": {func(t *testing.T, n node, _ *fakeBerthd, _ *health.Server) {
			require.NoError(t, os.Chmod(n.Socket, 0o666))
		}, doctor.Fail, "socket", "mode 0666"},
		"sick berthd": {func(_ *testing.T, _ node, _ *fakeBerthd, alive *health.Server) { alive.Shutdown() },
			doctor.Fail, "berthd", "NOT_SERVING"},
		"other root": {func(_ *testing.T, _ node, b *fakeBerthd, _ *health.Server) { b.root = "/elsewhere" },
			doctor.Fail, "berthd root", "/elsewhere"},
		"sick disk": {func(_ *testing.T, _ node, b *fakeBerthd, _ *health.Server) {
			b.disks = []*controlv1.Disk{{Name: "base", State: controlv1.DiskState_DISK_STATE_FAILED, LastError: "input/output error"}}
		}, doctor.Warn, "disk base", "failed: input/output error"},
		"containerd stopped": {func(_ *testing.T, n node, _ *fakeBerthd, _ *health.Server) { n.ContainerdAddress += "x" },
			doctor.Fail, "containerd", "does not answer"},
		"no containerd": {func(_ *testing.T, n node, _ *fakeBerthd, _ *health.Server) {
			n.ContainerdAddress, n.Containerd = n.ContainerdAddress+"x", n.Containerd+"x"
		}, doctor.Fail, "containerd", "neither answers"},
		"plugin missing": {func(t *testing.T, n node, _ *fakeBerthd, _ *health.Server) {
			require.NoError(t, os.WriteFile(n.ContainerdConfig, []byte("version = 4\n"), 0o600))
		}, doctor.Fail, "containerd configuration", `no proxy plugin "berth"`},
		"other snapshotter": {func(_ *testing.T, n node, _ *fakeBerthd, _ *health.Server) { n.Snapshotter = "disks" },
			doctor.Fail, "containerd configuration", "--snapshotter berth"},
		"no configuration, no binary": {func(t *testing.T, n node, _ *fakeBerthd, _ *health.Server) {
			n.Containerd += "x"
			require.NoError(t, os.Remove(n.ContainerdConfig))
		}, doctor.Fail, "containerd configuration", "no such file"},
		"root is a file": {func(t *testing.T, n node, b *fakeBerthd, _ *health.Server) {
			require.NoError(t, os.WriteFile(n.Root, nil, 0o600))
		}, doctor.Fail, "root", "is no directory"},
	} {
		t.Run(name, func(t *testing.T) {
			n, b, alive := healthyNode(t)
			tc.change(t, &n, b, alive)
			results := doctor.Run(t.Context(), n)
			bad := found(results)
			require.Equal(t, tc.name, bad[0].Name, fmt.Sprint(bad))
			require.Equal(t, tc.status, bad[0].Status)
			require.Contains(t, bad[0].Detail, tc.want)
			require.NotEmpty(t, bad[0].Advice)
			require.GreaterOrEqual(t, doctor.Worst(results), tc.status)
		})
	}
}

// TestModules: a file system that is a module is there, though not loaded yet.
func TestModules(t *testing.T) {
	n, _, _ := healthyNode(t)
	require.NoError(t, os.WriteFile(n.ProcFileSystems, []byte("\text4\n"), 0o600))
	require.Len(t, found(doctor.Run(t.Context(), n)), 2)
	var uname unix.Utsname
	require.NoError(t, unix.Uname(&uname))
	dir := filepath.Join(n.Modules, unix.ByteSliceToString(uname.Release[:]))
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.dep"),
		[]byte("kernel/fs/overlayfs/overlay.ko.xz:\nkernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko\n"), 0o600))
	require.Empty(t, found(doctor.Run(t.Context(), n)))
}

// TestWithoutBinary reads the files that containerd would.
func TestWithoutBinary(t *testing.T) {
	n, _, _ := healthyNode(t)
	n.Containerd += "x"
	require.Empty(t, found(doctor.Run(t.Context(), n)))
}

func TestNewerContainerd(t *testing.T) {
	n, _, _ := healthyNode(t)
	require.NoError(t, os.Remove(n.ContainerdAddress))
	n.ContainerdAddress += "2"
	serve(t, n.ContainerdAddress, func(s *grpc.Server) { versionapi.RegisterVersionServer(s, &fakeContainerd{version: "v9.1.0"}) })
	bad := found(doctor.Run(t.Context(), n))
	require.Len(t, bad, 1)
	require.True(t, strings.Contains(bad[0].Advice, "newer berth"), bad[0].Advice)
}
