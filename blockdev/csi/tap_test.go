package csi_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/blockdev/retry"
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

// openPatient opens a driver as package drivers gives it, which asks again what the storage was too busy for.
func (f *tap) openPatient(t *testing.T) patient {
	t.Helper()
	d, ok := retry.Around(f.open(t, nil)).(patient)
	require.True(t, ok)
	return d
}

type patient interface {
	blockdev.Attacher
	blockdev.Provisioner
}

func (f *tap) volume(t *testing.T, d *csi.Driver, name string) string {
	t.Helper()
	v, err := d.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: mib})
	require.NoError(t, err)
	return v.ID
}
