// Package registry runs a real registry (distribution's) behind a proxy that counts what is fetched and can be told to
// misbehave.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"berth.dev/berth/test/harness/process"
	"berth.dev/berth/test/harness/tools"
	"berth.dev/berth/test/harness/wait"
)

const (
	startTimeout = 30 * time.Second
	stopGrace    = 10 * time.Second
)

// Registry is a running registry with its proxy.
type Registry struct {
	*Proxy
	dir  string
	proc *process.Process
}

// Config of a registry.
type Config struct {
	// Dir holds the log and, unless Storage is set, the blobs.
	Dir string
	// Storage is a directory of blobs that may have been filled before; empty for a new one below Dir.
	Storage string
	// TLS makes the proxy speak HTTPS with a certificate for 127.0.0.1; see Proxy.CAFile.
	TLS bool
}

// Start runs a registry behind a proxy on a free port of the loopback address.
func Start(ctx context.Context, cfg Config) (*Registry, error) {
	bin, err := tools.Dir(ctx, "registry")
	if err != nil {
		return nil, err
	}
	if cfg.Storage == "" {
		cfg.Storage = filepath.Join(cfg.Dir, "blobs")
	}
	if err := errors.Join(os.MkdirAll(cfg.Dir, 0o755), os.MkdirAll(cfg.Storage, 0o755)); err != nil {
		return nil, fmt.Errorf("make directories of registry: %w", err)
	}
	// A socket of its own: a port that is free now may be another's by the time the registry listens.
	socket := filepath.Join(cfg.Dir, "registry.sock")
	backend := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	file := filepath.Join(cfg.Dir, "registry.yml")
	if err := os.WriteFile(file, []byte(configText(socket, cfg.Storage)), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration of registry: %w", err)
	}
	p, err := process.Start(ctx, process.Spec{
		Name: "registry", Args: []string{filepath.Join(bin, "registry"), "serve", file},
		// The exporter would look for a collector on this machine.
		Env:    []string{"OTEL_TRACES_EXPORTER=none"},
		LogDir: cfg.Dir,
	})
	if err != nil {
		return nil, err
	}
	r := &Registry{dir: cfg.Dir, proc: p}
	if err := waitReady(ctx, p, backend); err != nil {
		return nil, errors.Join(err, fmt.Errorf("log of registry:\n%s", p.LogTail(20)), p.Kill())
	}
	r.Proxy, err = newProxy(backend, cfg)
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return r, nil
}

func configText(socket, storage string) string {
	return fmt.Sprintf("version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\n"+
		"storage:\n  filesystem:\n    rootdirectory: %q\n  delete:\n    enabled: true\nhttp:\n  net: unix\n  addr: %q\n", storage, socket)
}

func waitReady(ctx context.Context, p *process.Process, backend http.RoundTripper) error {
	var ended error
	err := wait.Until(ctx, startTimeout, "registry to answer", func(ctx context.Context) error {
		if ended = p.Err(); ended != nil {
			return nil
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://registry/v2/", http.NoBody)
		if err != nil {
			return err
		}
		resp, err := (&http.Client{Transport: backend}).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		return nil
	})
	return errors.Join(ended, err)
}

// Close stops proxy and registry.
func (r *Registry) Close() error {
	r.close()
	return r.proc.Stop(stopGrace)
}
