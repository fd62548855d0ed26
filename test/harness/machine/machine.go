// Package machine is a fresh node for one measurement: a new file system with a new containerd on it and, if asked for,
// a berthd with its disks.
package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/freshfs"
	"berth.dev/berth/test/harness/registry"
	"berth.dev/berth/test/harness/tools"
	"berth.dev/berth/test/harness/wait"
)

// Overlayfs is the name of containerd's own snapshotter.
const Overlayfs = "overlayfs"

const attachTimeout = time.Minute

// Options of a machine.
type Options struct {
	// Dir that everything is made in; it must be new and short.
	Dir string
	// Bin has berth and berthd.
	Bin string
	// Snapshotter to pull with: berth.PluginName or Overlayfs.
	Snapshotter string
	// Disks that berthd serves from.
	Disks []string
	// Berthd changes berthd's configuration further; nil changes nothing.
	Berthd func(*berth.Config)
	// Unpacks is containerd's max_concurrent_unpacks; 0 is its default.
	Unpacks int
	// SameFileSystem uses the file system of Dir instead of a fresh one, where time does not matter.
	SameFileSystem bool
}

// Machine that runs. Close it after use, also if Start gave an error.
type Machine struct {
	opts       Options
	fs         *freshfs.Filesystem
	Berthd     *berth.Daemon
	Containerd *containerd.Daemon
}

// Start the machine.
func Start(ctx context.Context, opts Options) (*Machine, error) {
	m := &Machine{opts: opts}
	if err := os.MkdirAll(opts.Dir, 0o711); err != nil { //nolint:gosec // user-namespaced runtimes have to pass through
		return m, fmt.Errorf("make directory of machine: %w", err)
	}
	node := filepath.Join(opts.Dir, "n")
	if opts.SameFileSystem {
		if err := os.MkdirAll(node, 0o711); err != nil { //nolint:gosec // see above
			return m, fmt.Errorf("make directory of machine: %w", err)
		}
	} else {
		var err error
		if m.fs, err = freshfs.Mount(ctx, filepath.Join(opts.Dir, "fs.img"), node); err != nil {
			return m, err
		}
	}
	cfg := containerd.Config{
		Version: tools.DefaultContainerd, Dir: filepath.Join(node, "c"), Namespace: "berth-" + filepath.Base(opts.Dir),
		MaxConcurrentUnpacks: opts.Unpacks,
	}
	if opts.Snapshotter == berth.PluginName {
		if err := m.startBerthd(ctx, node); err != nil {
			return m, err
		}
		var err error
		if cfg.Snippet, err = m.Berthd.Snippet(ctx, cfg.Version); err != nil {
			return m, err
		}
	}
	var err error
	if m.Containerd, err = containerd.New(ctx, cfg); err != nil {
		return m, err
	}
	return m, m.Containerd.Start(ctx)
}

func (m *Machine) startBerthd(ctx context.Context, node string) error {
	cfg := berth.Config{Dir: filepath.Join(node, "b"), Bin: m.opts.Bin}
	for i, path := range m.opts.Disks {
		cfg.Disks = append(cfg.Disks, berth.Disk{Name: fmt.Sprintf("disk%d", i), Path: path, Keep: true})
	}
	if m.opts.Berthd != nil {
		m.opts.Berthd(&cfg)
	}
	var err error
	if m.Berthd, err = berth.New(cfg); err != nil {
		return err
	}
	if err := m.Berthd.Start(ctx); err != nil {
		return err
	}
	return wait.Until(ctx, attachTimeout, "layer disks to serve", func(ctx context.Context) error {
		status, err := m.Berthd.Status(ctx)
		if err != nil {
			return err
		}
		for _, want := range cfg.Disks {
			if d, err := status.Disk(want.Name); err != nil || !d.Serving {
				return errors.Join(err, fmt.Errorf("disk %s is %s %s", want.Name, d.State, d.LastError))
			}
		}
		return nil
	})
}

// Pulled is the measurement of one pull.
type Pulled struct {
	// Time of the pull, and of a first container after it from start to end.
	Time, Run time.Duration
	// Bytes of blobs that the registry sent.
	Bytes int64
	// Hits are layers found on disks.
	Hits int
}

// Pull an image and run a command in it.
func (m *Machine) Pull(ctx context.Context, reg *registry.Registry, ref string, command []string) (Pulled, error) {
	var p Pulled
	before, err := m.hits(ctx)
	if err != nil {
		return p, err
	}
	reg.Reset()
	start := time.Now()
	err = m.Containerd.Pull(ctx, ref, containerd.PullOptions{Snapshotter: m.opts.Snapshotter, PlainHTTP: true})
	if err != nil {
		return p, m.explain(err)
	}
	p.Time, p.Bytes = time.Since(start), reg.Bytes()
	after, err := m.hits(ctx)
	if err != nil {
		return p, err
	}
	p.Hits = after - before
	start = time.Now()
	if _, err := m.Containerd.Run(ctx, ref, "first", containerd.RunOptions{Snapshotter: m.opts.Snapshotter}, command...); err != nil {
		return p, m.explain(err)
	}
	p.Run = time.Since(start)
	return p, nil
}

func (m *Machine) hits(ctx context.Context) (int, error) {
	if m.Berthd == nil {
		return 0, nil
	}
	status, err := m.Berthd.Status(ctx)
	return berth.Sum(status.Hits), err
}

// explain adds the ends of the logs to an error.
func (m *Machine) explain(err error) error {
	err = fmt.Errorf("%w\nlog of containerd:\n%s", err, m.Containerd.LogTail(10))
	if m.Berthd != nil {
		err = fmt.Errorf("%w\nlog of berthd:\n%s", err, m.Berthd.LogTail(20))
	}
	return err
}

// Close stops everything and deletes the directory.
func (m *Machine) Close() error {
	var errs []error
	if m.Containerd != nil {
		errs = append(errs, m.Containerd.Close())
	}
	if m.Berthd != nil {
		errs = append(errs, m.Berthd.Close())
	}
	if m.fs != nil {
		errs = append(errs, m.fs.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return err // a directory with something mounted in it must not be deleted
	}
	return os.RemoveAll(m.opts.Dir)
}
