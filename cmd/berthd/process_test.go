package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// runAsDaemon makes the test binary a berthd, so that tests have a real process of the code under test.
const runAsDaemon = "BERTHD_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(runAsDaemon) == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

const patience = 30 * time.Second

// process is a berthd in a directory of its own.
type process struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	log    *syncBuffer
	exited chan error
	notify *net.UnixConn
	// binary to run; empty is the test's own.
	binary string
}

// newProcess prepares a directory with a configuration; what is mounted below it is gone at the end.
func newProcess(t *testing.T, settings string) *process {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// Not t.TempDir, whose path holds the test's name: sockets and mounts want short paths.
	dir, err := os.MkdirTemp("", "berthd") //nolint:usetesting // a short path, see above
	require.NoError(t, err)
	p := &process{t: t, dir: dir}
	p.configure(settings)
	t.Cleanup(func() {
		if p.cmd != nil {
			p.kill()
		}
		if t.Failed() && p.log != nil {
			t.Log(p.log.String())
		}
		require.NoError(t, os.RemoveAll(dir))
	})
	return p
}

func (p *process) path(name string) string { return filepath.Join(p.dir, name) }
func (p *process) socket() string          { return p.path("s") }
func (p *process) root() string            { return p.path("r") }

// configure writes the configuration; settings come after the top-level keys.
func (p *process) configure(settings string) {
	p.t.Helper()
	text := fmt.Sprintf("root = %q\nsocket = %q\n", p.root(), p.socket())
	if !strings.Contains(settings, "[metrics]") {
		text += "[metrics]\naddress = \"\"\n"
	}
	require.NoError(p.t, os.WriteFile(p.path("config.toml"), []byte(text+settings), 0o600))
}

// begin starts the process without waiting.
func (p *process) begin(env ...string) {
	p.t.Helper()
	notify := p.path("notify")
	require.NoError(p.t, os.RemoveAll(notify))
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	require.NoError(p.t, err)
	p.t.Cleanup(func() { require.NoError(p.t, conn.Close()) })
	p.notify = conn

	exe := p.binary
	if exe == "" {
		exe, err = os.Executable()
		require.NoError(p.t, err)
	}
	p.log = &syncBuffer{}
	p.cmd = exec.CommandContext(p.t.Context(), exe, "--config", p.path("config.toml"))
	p.cmd.Env = append(os.Environ(), append(env, runAsDaemon+"=1", "NOTIFY_SOCKET="+notify)...)
	p.cmd.Stderr = p.log
	require.NoError(p.t, p.cmd.Start())
	exited, cmd := make(chan error, 1), p.cmd
	p.exited = exited
	go func() { exited <- cmd.Wait() }()
}

// start returns when the daemon has told systemd that it is ready.
func (p *process) start(env ...string) {
	p.t.Helper()
	p.begin(env...)
	p.notified("READY=1")
}

// notified waits for a message of the daemon to systemd.
func (p *process) notified(want string) {
	p.t.Helper()
	require.NoError(p.t, p.notify.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 1024)
	for {
		n, err := p.notify.Read(buf)
		require.NoError(p.t, err, "waiting for %s; log:\n%s", want, p.log)
		if string(buf[:n]) == want {
			return
		}
	}
}

// wait for the process to end.
func (p *process) wait() error {
	p.t.Helper()
	select {
	case err := <-p.exited:
		p.cmd = nil
		return err
	case <-time.After(patience):
		require.Fail(p.t, "berthd does not end", p.log.String())
		return nil
	}
}

// stop is what systemd does.
func (p *process) stop() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(unix.SIGTERM))
	require.NoError(p.t, p.wait())
}

// kill is a crash.
func (p *process) kill() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Kill())
	var exit *exec.ExitError
	require.True(p.t, errors.As(p.wait(), &exit))
}

func (p *process) dial() *grpc.ClientConn {
	p.t.Helper()
	conn, err := grpc.NewClient("unix:"+p.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(p.t, err)
	p.t.Cleanup(func() { require.NoError(p.t, conn.Close()) })
	return conn
}

func (p *process) control() controlv1.ControlServiceClient {
	return controlv1.NewControlServiceClient(p.dial())
}

func (p *process) healthy() {
	p.t.Helper()
	resp, err := grpc_health_v1.NewHealthClient(p.dial()).Check(p.t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(p.t, err)
	require.Equal(p.t, grpc_health_v1.HealthCheckResponse_SERVING, resp.GetStatus())
}

// disk as the daemon lists it, nil if it does not.
func (p *process) disk(name string) *controlv1.Disk {
	p.t.Helper()
	resp, err := p.control().ListDisks(p.t.Context(), &controlv1.ListDisksRequest{})
	require.NoError(p.t, err)
	for _, d := range resp.GetDisks() {
		if d.GetName() == name {
			return d
		}
	}
	return nil
}

// eventually waits for a condition that no message announces.
func (p *process) eventually(what string, cond func() bool) {
	p.t.Helper()
	require.Eventually(p.t, cond, patience, 20*time.Millisecond, "waiting for %s; log:\n%s", what, p.log)
}

// syncBuffer is written by one goroutine and read by another.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(data)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
