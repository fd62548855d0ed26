package csi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/blockdev/loopdev"
)

const mib = 1 << 20

// serverVariable tells the test binary to be a CSI driver: a process of its own, which can be killed.
const serverVariable = "BERTH_TEST_CSI_SERVER"

// serverSpec is its configuration.
type serverSpec struct {
	Directory, Socket string
	Options           loopcsi.Options
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(serverVariable); spec != "" {
		if err := serve(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(text string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var spec serverSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	driver, err := loopdev.Open(spec.Directory)
	if err != nil {
		return err
	}
	defer driver.Close()
	server, err := loopcsi.New(driver, spec.Options)
	if err != nil {
		return err
	}
	_ = os.Remove(spec.Socket)
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", spec.Socket)
	if err != nil {
		return err
	}
	return server.Serve(ctx, l)
}

// plant is the storage of a test, with its CSI driver process.
type plant struct {
	t      *testing.T
	dir    string
	spec   serverSpec
	server *exec.Cmd
}

func newPlant(t *testing.T, options loopcsi.Options) *plant {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// Sockets need a shorter path than that of t.TempDir.
	dir, err := os.MkdirTemp("", "berth-csi-")
	require.NoError(t, err)
	if options.NodeID == "" {
		options.NodeID = "node-1"
	}
	p := &plant{t: t, dir: dir, spec: serverSpec{filepath.Join(dir, "storage"), filepath.Join(dir, "csi.sock"), options}}
	t.Cleanup(func() {
		if p.server != nil {
			p.stop(unix.SIGTERM)
		}
		p.detachAll()
		require.NoError(t, os.RemoveAll(dir))
	})
	p.start()
	return p
}

// detachAll gives back what a failed test has left, and says so.
func (p *plant) detachAll() {
	p.t.Helper()
	for _, target := range p.mounts() {
		p.t.Errorf("%s is left mounted", target)
		_ = unix.Unmount(target, 0)
	}
	driver, err := loopdev.Open(p.spec.Directory)
	require.NoError(p.t, err)
	defer driver.Close()
	attached, err := driver.Attached(context.Background())
	require.NoError(p.t, err)
	for id := range attached {
		p.t.Errorf("volume %s is left attached", id)
		require.NoError(p.t, driver.Detach(context.Background(), id))
	}
}

// mounts below the directory.
func (p *plant) mounts() (targets []string) {
	p.t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(p.t, err)
	for line := range strings.Lines(string(data)) {
		if target := strings.Fields(line)[4]; strings.HasPrefix(target, p.dir+"/") {
			targets = append(targets, target)
		}
	}
	return targets
}

func (p *plant) start() {
	p.t.Helper()
	text, err := json.Marshal(p.spec)
	require.NoError(p.t, err)
	self, err := os.Executable()
	require.NoError(p.t, err)
	p.server = exec.CommandContext(context.Background(), self, "-test.run=^$") //nolint:usetesting // it is stopped in Cleanup
	p.server.Env = append(os.Environ(), serverVariable+"="+string(text))
	p.server.Stderr = os.Stderr
	p.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(p.t, p.server.Start())
	require.Eventually(p.t, func() bool {
		conn, err := (&net.Dialer{}).DialContext(p.t.Context(), "unix", p.spec.Socket)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, 20*time.Second, 5*time.Millisecond, "the CSI driver does not listen")
}

func (p *plant) stop(how os.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.server.Process.Signal(how))
	err := p.server.Wait()
	if how == unix.SIGTERM {
		require.NoError(p.t, err)
	}
	p.server = nil
}

func (p *plant) config(node string) csi.Config {
	return csi.Config{Node: "unix://" + p.spec.Socket, Directory: filepath.Join(p.dir, node), Timeout: 10 * time.Second}
}

// open gives the driver of a node.
func (p *plant) open(node string) *csi.Driver {
	p.t.Helper()
	return openDriver(p.t, p.config(node))
}

func openDriver(t *testing.T, config csi.Config) *csi.Driver {
	t.Helper()
	d, err := csi.Open(config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// leftovers of a node's directory: files that are left when nothing should be.
func leftovers(t *testing.T, dir string) (left []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); strings.Contains(rel, "/") {
			left = append(left, rel)
		}
		return err
	}))
	return left
}
