// Package buildproc builds layer disks in a process of their own, "berth build", under limits, so that a build cannot
// hurt the daemon that wants it: it has its own share of the processors, its own bound on memory, and ends as a whole
// when it is told to.
//
// Where a cgroup may be made (version 2) the process is started in one of its own: cpu.weight and memory.max bound it,
// cgroup.kill ends it with everything it started. Where not, or where a controller is missing, nice(2) and RLIMIT_DATA
// take their place, and its process group is killed. It dies with the daemon in any case.
//
// Credentials reach it by a file that only its user can read, in a directory that is removed with it; they are never on
// a command line, and are taken out of every message.
package buildproc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
)

// Config of a Builder.
type Config struct {
	// Command is the berth program, and arguments that come before "build", if any.
	Command []string
	// TempDir takes credentials and the layers that wait for their turn; it should have room for the largest layers.
	// Builder deletes what is in it under names that begin with "build-".
	TempDir string
	// Secrets finds the credentials that registries of a spec name. It is nil if there are no credentials.
	Secrets SecretSource
	// Cgroup is a directory of the cgroup file system, version 2, to make cgroups in; empty for none. See
	// MoveToSubgroup.
	Cgroup string
	// CPUWeight is that of cgroups, 1 to 10000 with 100 for an equal share; 0 is 50.
	CPUWeight int
	// MemoryBytes is the most that a build may use; 0 is 2 GiB.
	MemoryBytes int64
	// HostsDir is a directory of containerd's hosts.toml files. If it is empty, no such files are read.
	HostsDir string
}

const (
	defaultCPUWeight   = 50
	defaultMemoryBytes = 2 << 30
	tempPrefix         = "build-"
)

// Builder is a lifecycle.Builder.
type Builder struct{ cfg Config }

var _ lifecycle.Builder = (*Builder)(nil)

// Open makes the directory for temporary files, if it is missing, and deletes what builds left there that were killed
// with their daemon.
func Open(cfg Config) (*Builder, error) {
	if len(cfg.Command) == 0 || cfg.TempDir == "" {
		return nil, fmt.Errorf("open builder: no program or no directory for temporary files: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.CPUWeight == 0 {
		cfg.CPUWeight = defaultCPUWeight
	}
	if cfg.MemoryBytes == 0 {
		cfg.MemoryBytes = defaultMemoryBytes
	}
	const least, most = 1, 10000
	if cfg.CPUWeight < least || cfg.CPUWeight > most || cfg.MemoryBytes < 0 {
		return nil, fmt.Errorf("open builder: CPU weight %d (allowed are %d to %d) or memory of %d bytes: %w", cfg.CPUWeight, least, most, cfg.MemoryBytes, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(cfg.TempDir, 0o700); err != nil {
		return nil, fmt.Errorf("open builder: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(cfg.TempDir, tempPrefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("open builder: %w", err)
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("open builder: delete leftover: %w", err)
		}
	}
	return &Builder{cfg}, nil
}

// Plan implements lifecycle.Builder.
func (b *Builder) Plan(ctx context.Context, req lifecycle.PlanRequest) (lifecycle.Plan, error) {
	var out outcome
	if err := b.run(ctx, req, []string{"--plan"}, &out); err != nil {
		return lifecycle.Plan{}, fmt.Errorf("resolve images: %w", err)
	}
	if out.contents == nil {
		return lifecycle.Plan{}, fmt.Errorf("resolve images: the build process ended without a result: %w", errdefs.ErrInternal)
	}
	plan := lifecycle.Plan{Chains: out.contents.Chains}
	for _, l := range out.contents.Layers {
		plan.Layers = append(plan.Layers, lifecycle.PlannedLayer{DiffID: l.DiffID, BlobBytes: l.BlobBytes})
	}
	return plan, nil
}

// Build implements lifecycle.Builder.
func (b *Builder) Build(ctx context.Context, req lifecycle.BuildRequest) (_ lifecycle.BuildResult, err error) {
	args := []string{"--output", req.Device.Path}
	lists, remove, err := b.writeAccessLists(req.AccessLists)
	if err != nil {
		return lifecycle.BuildResult{}, fmt.Errorf("build layer disk: hand over access lists: %w", err)
	}
	defer func() { err = errors.Join(err, remove()) }()
	for _, file := range lists {
		args = append(args, "--access-list", file)
	}
	if req.Reuse {
		args = append(args, "--reuse")
	}
	for _, d := range req.Donors {
		args = append(args, "--take-from", d.Device.Path)
	}
	out := outcome{progress: req.Progress}
	if err := b.run(ctx, req.PlanRequest, args, &out); err != nil {
		return lifecycle.BuildResult{}, fmt.Errorf("build layer disk: %w", err)
	}
	if out.result == nil {
		return lifecycle.BuildResult{}, fmt.Errorf("build layer disk: the build process ended without a result: %w", errdefs.ErrInternal)
	}
	result, id, err := readBack(req.Device.Path)
	if err == nil {
		err = id.Check(out.result.Identity)
	}
	if err != nil {
		return lifecycle.BuildResult{}, fmt.Errorf("read the disk back: %w", err)
	}
	result.FetchedBytes, result.ReusedBytes = out.result.FetchedBytes, out.result.ReusedBytes
	for _, t := range out.result.TakenFrom {
		result.CopiedBytes = append(result.CopiedBytes, t.UnpackedBytes)
	}
	return result, nil
}

// writeAccessLists writes access lists for the process to read.
func (b *Builder) writeAccessLists(lists []*accesslist.List) (files []string, remove func() error, err error) {
	if len(lists) == 0 {
		return nil, func() error { return nil }, nil
	}
	dir, err := os.MkdirTemp(b.cfg.TempDir, tempPrefix)
	if err != nil {
		return nil, nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	for i, l := range lists {
		data, err := l.Encode()
		file := filepath.Join(dir, strconv.Itoa(i))
		if err == nil {
			err = os.WriteFile(file, data, 0o600)
		}
		if err != nil {
			return nil, nil, errors.Join(err, remove())
		}
		files = append(files, file)
	}
	return files, remove, nil
}

// readBack returns the index as it is on the disk.
func readBack(path string) (r lifecycle.BuildResult, id layerdisk.Identity, err error) {
	f, err := os.Open(path)
	if err != nil {
		return r, id, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h, err := layerdisk.ReadHeader(f)
	if err != nil {
		return r, id, err
	}
	r.DiskBytes, r.Index = h.DiskBytes, make([]byte, h.IndexBytes)
	if _, err := f.ReadAt(r.Index, h.IndexOffset); err != nil {
		return r, id, err
	}
	if got := digest.SHA256.FromBytes(r.Index); got != h.IndexDigest {
		return r, id, fmt.Errorf("its index has digest %s, its header says %s: %w", got, h.IndexDigest, layerdisk.ErrCorrupt)
	}
	return r, h.Identity(), nil
}

// arguments of the program for a spec. Nothing in it is a secret.
func (b *Builder) arguments(spec imagesnapshot.Spec, more []string) []string {
	args := append([]string{}, b.cfg.Command[1:]...)
	args = append(args, "build", "--json", "--registry-only")
	args = append(args, more...)
	for _, p := range spec.Platforms {
		args = append(args, "--platform", p)
	}
	for _, r := range spec.Registries {
		if r.PlainHTTP {
			args = append(args, "--plain-http", r.Server)
		}
		if r.InsecureSkipVerify {
			args = append(args, "--insecure-skip-verify", r.Server)
		}
	}
	for _, s := range spec.Build.DNSServers {
		args = append(args, "--dns", s)
	}
	if b.cfg.HostsDir != "" {
		args = append(args, "--hosts-dir", b.cfg.HostsDir)
	}
	args = append(args, "--")
	return append(args, spec.Images...)
}
