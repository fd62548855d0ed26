// Package containerd runs a real containerd of any tested version, apart from the host's own: with its own
// configuration, root, state and sockets below one directory, and with everything taken away at the end.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"berth.dev/berth/test/harness/process"
	"berth.dev/berth/test/harness/tools"
	"berth.dev/berth/test/harness/wait"
)

// Platform of the images that tests pull: this machine's.
const Platform = "linux/" + runtime.GOARCH

const (
	startTimeout = 60 * time.Second
	stopGrace    = 20 * time.Second
)

// Daemon is a containerd. It is not safe for concurrent Start and Stop.
type Daemon struct {
	cfg Config
	// bin has containerd, ctr and the shim, runc the runtime.
	bin, runc string
	proc      *process.Process
}

// New writes the configuration; Start runs the daemon.
func New(ctx context.Context, cfg Config) (*Daemon, error) {
	if cfg.Version == "" {
		cfg.Version = tools.DefaultContainerd
	}
	bin, err := tools.Dir(ctx, "containerd@"+cfg.Version)
	if err != nil {
		return nil, err
	}
	runc, err := tools.Dir(ctx, "runc")
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{cfg.Dir, cfg.certsDir(), cfg.cniDir(), cfg.cniBinDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory of containerd: %w", err)
		}
	}
	// User-namespaced runtimes have to pass through.
	if err := os.Chmod(cfg.Dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, fmt.Errorf("open directory of containerd: %w", err)
	}
	if err := writeNullNetwork(cfg.cniDir(), cfg.cniBinDir()); err != nil {
		return nil, err
	}
	d := &Daemon{cfg: cfg, bin: bin, runc: runc}
	return d, d.Configure(func(*Config) {})
}

// Configure changes the configuration for the next Start.
func (d *Daemon) Configure(change func(*Config)) error {
	change(&d.cfg)
	text, err := d.cfg.text()
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.cfg.configTOML(), text, 0o600); err != nil {
		return fmt.Errorf("write configuration of containerd: %w", err)
	}
	return nil
}

// Config in force at the next Start.
func (d *Daemon) Config() Config { return d.cfg }

// UseRegistry says how CRI and nerdctl speak to host. CRI would use TLS, nerdctl plain HTTP, because it is this
// machine.
func (d *Daemon) UseRegistry(host string, plainHTTP bool) error {
	server := "https://" + host
	if plainHTTP {
		server = "http://" + host
	}
	dir := filepath.Join(d.cfg.certsDir(), host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make hosts directory: %w", err)
	}
	text := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", server, server)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write hosts.toml: %w", err)
	}
	return nil
}

// Start runs containerd and returns when its services answer.
func (d *Daemon) Start(ctx context.Context) error {
	env := []string{"PATH=" + d.bin + ":" + d.runc + ":" + os.Getenv("PATH")}
	if d.cfg.CAFile != "" {
		env = append(env, "SSL_CERT_FILE="+d.cfg.CAFile)
	}
	p, err := process.Start(ctx, process.Spec{
		Name:   "containerd",
		Args:   []string{filepath.Join(d.bin, "containerd"), "--config", d.cfg.configTOML(), "--log-level", "info"},
		Env:    env,
		LogDir: d.cfg.Dir,
	})
	if err != nil {
		return err
	}
	d.proc = p
	if err := d.waitReady(ctx); err != nil {
		return errors.Join(err, fmt.Errorf("log of containerd:\n%s", p.LogTail(40)), p.Kill())
	}
	return nil
}

func (d *Daemon) waitReady(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+d.cfg.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dial containerd: %w", err)
	}
	defer conn.Close()
	c, err := client.NewWithConn(conn)
	if err != nil {
		return fmt.Errorf("make client of containerd: %w", err)
	}
	var ended error
	err = wait.Until(ctx, startTimeout, "containerd "+d.cfg.Version+" to answer", func(ctx context.Context) error {
		if ended = d.proc.Err(); ended != nil {
			return nil //nolint:nilerr // ends the waiting; the caller joins it
		}
		if conn.GetState() == connectivity.TransientFailure {
			conn.ResetConnectBackoff()
		}
		_, err := c.Version(ctx)
		return err
	})
	return errors.Join(ended, err)
}

// Socket of the gRPC services.
func (d *Daemon) Socket() string { return d.cfg.socket() }

// Client speaks to the running daemon; the caller closes it.
func (d *Daemon) Client() (*client.Client, error) {
	c, err := client.New(d.cfg.socket())
	if err != nil {
		return nil, fmt.Errorf("make client of containerd: %w", err)
	}
	return c, nil
}

// Stop ends containerd alone; containers and their shims go on, as after a crash or an upgrade.
func (d *Daemon) Stop() error {
	if d.proc == nil {
		return nil
	}
	return d.proc.Stop(stopGrace)
}

// LogTail is the last lines that containerd has written.
func (d *Daemon) LogTail(n int) string {
	if d.proc == nil {
		return ""
	}
	return d.proc.LogTail(n)
}

// LogPath is the file with everything it has written.
func (d *Daemon) LogPath() string { return filepath.Join(d.cfg.Dir, "containerd.log") }

// PID of the running daemon.
func (d *Daemon) PID() int { return d.proc.PID() }
