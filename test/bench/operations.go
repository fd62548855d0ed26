package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/overlayproxy"
	"berth.dev/berth/test/harness/process"
	"berth.dev/berth/test/harness/wait"
)

// operations measures the latency of each operation of the snapshotter, as containerd calls it, beside that of the
// stock overlay snapshotter behind the same service.
func (b *bench) operations(ctx context.Context, _ string) error {
	dir := filepath.Join(b.dir, "ops")
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // as other directories of snapshots
		return fmt.Errorf("make a directory: %w", err)
	}
	overlay, err := stockOperations(ctx, dir)
	if err != nil {
		return err
	}
	d, err := berth.New(berth.Config{Dir: filepath.Join(dir, "b"), Bin: b.bin})
	if err != nil {
		return err
	}
	if err := d.Start(ctx); err != nil {
		return err
	}
	own, err := measureOperations(ctx, d.Socket())
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	const part = "snapshotter operations (median)"
	for i, op := range own {
		b.report.add(part, op.name+", berth", op.micros, "us")
		b.report.add(part, op.name+", overlayfs", overlay[i].micros, "us")
		b.report.add(part, op.name+", berth against overlayfs", op.micros/overlay[i].micros, "x")
	}
	return nil
}

// serveStock is what this command does when it is started as the stock snapshotter: in a process of its own, as berthd
// is, because calls within one process are several times faster.
func serveStock(ctx context.Context, dir string) error {
	stock, err := overlayproxy.Start(ctx, filepath.Join(dir, "o"), filepath.Join(dir, "o.sock"))
	if err != nil {
		return err
	}
	<-ctx.Done()
	return stock.Close()
}

func stockOperations(ctx context.Context, dir string) (_ []operation, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	p, err := process.Start(ctx, process.Spec{Name: "overlayproxy", Args: []string{self, "-stock", dir}, LogDir: dir})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Stop(time.Minute)) }()
	socket := filepath.Join(dir, "o.sock")
	err = wait.Until(ctx, time.Minute, "the stock snapshotter's socket", func(context.Context) error {
		_, err := os.Stat(socket)
		return errors.Join(err, p.Err())
	})
	if err != nil {
		return nil, err
	}
	return measureOperations(ctx, socket)
}

// operation with its median latency in microseconds.
type operation struct {
	name   string
	micros float64
}

// dial is a snapshotter as containerd sees it.
func dial(socket string) (snapshots.Snapshotter, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial snapshotter: %w", err)
	}
	return closing{proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "bench"), conn}, nil
}

// closing ends the connection with the snapshotter.
type closing struct {
	snapshots.Snapshotter
	conn *grpc.ClientConn
}

func (c closing) Close() error { return c.conn.Close() }

const repetitions = 200

func measureOperations(ctx context.Context, socket string) (_ []operation, err error) {
	ctx = namespaces.WithNamespace(ctx, "bench")
	sn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sn.Close()) }()
	key := func(kind string, i int) string { return fmt.Sprintf("bench/%d/%s", i, kind) }
	steps := []struct {
		name string
		do   func(i int) error
	}{
		{"prepare a layer", func(i int) error { _, err := sn.Prepare(ctx, key("extract", i), ""); return err }},
		{"commit it", func(i int) error { return sn.Commit(ctx, key("layer", i), key("extract", i)) }},
		{"prepare a container", func(i int) error { _, err := sn.Prepare(ctx, key("container", i), key("layer", i)); return err }},
		{"mounts of it", func(i int) error { _, err := sn.Mounts(ctx, key("container", i)); return err }},
		{"stat of it", func(i int) error { _, err := sn.Stat(ctx, key("container", i)); return err }},
		{"usage of the layer", func(i int) error { _, err := sn.Usage(ctx, key("layer", i)); return err }},
		{"remove the container", func(i int) error { return sn.Remove(ctx, key("container", i)) }},
		{"remove the layer", func(i int) error { return sn.Remove(ctx, key("layer", i)) }},
	}
	var ops []operation
	for _, step := range steps {
		var micros []float64
		for i := range repetitions {
			start := time.Now()
			if err := step.do(i); err != nil {
				return nil, fmt.Errorf("%s: %w", step.name, err)
			}
			micros = append(micros, float64(time.Since(start).Nanoseconds())/1e3)
		}
		ops = append(ops, operation{step.name, median(micros)})
	}
	return ops, nil
}

// memory measures berthd with a disk and nothing to do, and with many snapshots.
func (b *bench) memory(ctx context.Context, disk string) (err error) {
	d, err := berth.New(berth.Config{
		Dir: filepath.Join(b.dir, "mem"), Bin: b.bin, Disks: []berth.Disk{{Name: "d", Path: disk, Keep: true}},
	})
	if err != nil {
		return err
	}
	if err := d.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	const part, limit = "memory of berthd (resident)", 40
	idle, err := residentMB(d.Process().PID())
	if err != nil {
		return err
	}
	b.report.atMost(part, "idle", idle, "MB", limit)
	count := 5000
	if b.quick {
		count = 1000
	}
	sn, err := dial(d.Socket())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sn.Close()) }()
	ctx = namespaces.WithNamespace(ctx, "bench")
	for i := range count {
		extract, name := fmt.Sprintf("bench/%d/extract", i), fmt.Sprintf("bench/%d/layer", i)
		if _, err := sn.Prepare(ctx, extract, ""); err != nil {
			return fmt.Errorf("prepare snapshot %d: %w", i, err)
		}
		if err := sn.Commit(ctx, name, extract); err != nil {
			return fmt.Errorf("commit snapshot %d: %w", i, err)
		}
	}
	full, err := residentMB(d.Process().PID())
	if err != nil {
		return err
	}
	b.report.atMost(part, fmt.Sprintf("with %d snapshots", count), full, "MB", limit)
	return nil
}

// residentMB is VmRSS of proc(5).
func residentMB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of process: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kilobytes, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kilobytes * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
