package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/machine"
)

// builder measures berth build of all images against containerd's pull of the same, four layers at once, and against
// writing as many bytes. It leaves the disk for the other parts.
func (b *bench) builder(ctx context.Context, disk string) error {
	args := []string{"build", "-o", disk, "--plain-http", b.reg.Host()}
	for _, s := range b.images {
		args = append(args, s.ref)
	}
	start := time.Now()
	if _, err := berth.Run(ctx, b.bin, nil, args...); err != nil {
		return err
	}
	build := time.Since(start)
	st, err := os.Stat(disk)
	if err != nil {
		return fmt.Errorf("look at disk: %w", err)
	}
	write, err := sequentialWrite(filepath.Join(b.dir, "plain"), st.Size())
	if err != nil {
		return err
	}
	pull, err := b.pullAll(ctx)
	if err != nil {
		return err
	}
	const part = "builder (all images)"
	size := float64(st.Size()) / 1e6
	b.report.add(part, "berth build, to the disk", build.Seconds(), "s")
	b.report.add(part, "size of the disk", size, "MB")
	b.report.add(part, "throughput of the build, by disk bytes", size/build.Seconds(), "MB/s")
	b.report.add(part, "sequential write of as many bytes", write.Seconds(), "s")
	b.report.add(part, "build against sequential write", build.Seconds()/write.Seconds(), "x")
	b.report.add(part, "ctr images pull, overlayfs, 4 layers at once", pull.Seconds(), "s")
	b.report.atLeast(part, "speed of build against that pull", pull.Seconds()/build.Seconds(), 1.3)
	return nil
}

// sequentialWrite is the time to write and flush a file; the file is deleted.
func sequentialWrite(path string, size int64) (time.Duration, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, fmt.Errorf("create file: %w", err)
	}
	defer os.Remove(path) //nolint:errcheck // the directory goes at the end
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	start := time.Now()
	for left := size; left > 0; left -= int64(len(block)) {
		if _, err := f.Write(block[:min(int64(len(block)), left)]); err != nil {
			return 0, errors.Join(fmt.Errorf("write file: %w", err), f.Close())
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return 0, fmt.Errorf("flush file: %w", err)
	}
	return time.Since(start), nil
}

// pullAll is the time to pull all images into one fresh containerd, and to have them on stable storage as the built
// disk is.
func (b *bench) pullAll(ctx context.Context) (total time.Duration, err error) {
	m, err := machine.Start(ctx, machine.Options{Dir: filepath.Join(b.dir, "m"), Bin: b.bin, Snapshotter: machine.Overlayfs, Unpacks: 4})
	defer func() { err = errors.Join(err, m.Close()) }() //nolint:contextcheck // also after the end of ctx
	if err != nil {
		return 0, err
	}
	for _, s := range b.images {
		p, err := m.Pull(ctx, b.reg, s.ref, s.check)
		if err != nil {
			return 0, err
		}
		total += p.Time
	}
	start := time.Now()
	if err := syncfs(filepath.Join(b.dir, "m", "n")); err != nil {
		return 0, err
	}
	return total + time.Since(start), nil
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open file system: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("flush file system: %w", err)
	}
	return nil
}

// Each pull is done so many times, unless they take long: then chance matters less.
const (
	pullRounds = 7
	longPull   = 10 * time.Second
)

// pulls measures each image on a fresh machine for each way.
func (b *bench) pulls(ctx context.Context, disk string) error {
	ways := []struct {
		name string
		opts machine.Options
	}{
		{"berth", machine.Options{Snapshotter: berth.PluginName, Disks: []string{disk}}},
		{"overlayfs", machine.Options{Snapshotter: machine.Overlayfs}},
		{"overlayfs, 4 at once", machine.Options{Snapshotter: machine.Overlayfs, Unpacks: 4}},
	}
	for _, s := range b.images {
		part := fmt.Sprintf("pull and start, %s (%.1f MB compressed)", s.Name, float64(s.compressed)/1e6)
		var pulled []machine.Pulled
		for _, way := range ways {
			p, err := b.pullMedian(ctx, s, way.opts)
			if err != nil {
				return fmt.Errorf("%s with %s: %w", s.Name, way.name, err)
			}
			pulled = append(pulled, p)
			b.report.add(part, way.name+": pull", p.Time.Seconds(), "s")
			b.report.add(part, way.name+": first container, start to end", p.Run.Seconds(), "s")
			b.report.add(part, way.name+": fetched", float64(p.Bytes)/1e6, "MB")
		}
		metadata, err := b.metadataMedian(ctx, s)
		if err != nil {
			return fmt.Errorf("%s, metadata only: %w", s.Name, err)
		}
		b.report.add(part, "resolve, manifest and configuration only", metadata.Seconds(), "s")
		full, slow := pulled[0].Time.Seconds()/metadata.Seconds(), pulled[1].Time.Seconds()/pulled[0].Time.Seconds()
		if s.Name == "large" {
			b.report.atMost(part, "berth against metadata only", full, "x", 1.5)
			b.report.atLeast(part, "speed of berth against overlayfs", slow, 30)
		} else {
			b.report.add(part, "berth against metadata only", full, "x")
			b.report.add(part, "speed of berth against overlayfs", slow, "x")
		}
		b.report.add(part, "speed of berth against overlayfs, 4 at once", pulled[2].Time.Seconds()/pulled[0].Time.Seconds(), "x")
	}
	return nil
}

// pullMedian pulls several times and takes the one of median time; once for what takes long.
func (b *bench) pullMedian(ctx context.Context, s subject, opts machine.Options) (machine.Pulled, error) {
	var pulled []machine.Pulled
	for start := time.Now(); len(pulled) == 0 || len(pulled) < pullRounds && time.Since(start) < longPull; {
		p, err := b.pull(ctx, s, opts)
		if err != nil {
			return p, err
		}
		pulled = append(pulled, p)
	}
	return middle(pulled, func(p machine.Pulled) float64 { return p.Time.Seconds() }), nil
}

func (b *bench) metadataMedian(ctx context.Context, s subject) (time.Duration, error) {
	var times []time.Duration
	for range pullRounds {
		d, err := b.metadataOnly(ctx, s)
		if err != nil {
			return 0, err
		}
		times = append(times, d)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

func (b *bench) pull(ctx context.Context, s subject, opts machine.Options) (p machine.Pulled, err error) {
	opts.Dir, opts.Bin = filepath.Join(b.dir, "m"), b.bin
	m, err := machine.Start(ctx, opts)
	defer func() { err = errors.Join(err, m.Close()) }() //nolint:contextcheck // also after the end of ctx
	if err != nil {
		return p, err
	}
	return m.Pull(ctx, b.reg, s.ref, s.check)
}

// metadataOnly is the time of what no pull can do without: to start ctr, to resolve the reference and to fetch manifest
// and configuration into containerd. ctr itself cannot leave out the layers of an image that has no index, so its start
// is measured by another command, and the rest is done by containerd's client.
func (b *bench) metadataOnly(ctx context.Context, s subject) (d time.Duration, err error) {
	m, err := machine.Start(ctx, machine.Options{Dir: filepath.Join(b.dir, "m"), Bin: b.bin, Snapshotter: machine.Overlayfs})
	defer func() { err = errors.Join(err, m.Close()) }() //nolint:contextcheck // also after the end of ctx
	if err != nil {
		return 0, err
	}
	c, err := m.Containerd.Client()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b.reg.Reset()
	start := time.Now()
	if _, err := m.Containerd.Ctr(ctx, "", "version"); err != nil {
		return 0, err
	}
	_, err = c.Fetch(namespaces.WithNamespace(ctx, "bench"), s.ref,
		client.WithResolver(docker.NewResolver(docker.ResolverOptions{
			Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts)),
		})),
		client.WithImageHandlerWrapper(withoutLayers))
	if err != nil {
		return 0, fmt.Errorf("fetch manifest and configuration of %s: %w", s.ref, err)
	}
	d = time.Since(start)
	if n := b.reg.Bytes(); n > s.compressed/10 {
		return 0, fmt.Errorf("fetch manifest and configuration of %s: %d bytes came", s.ref, n)
	}
	return d, nil
}

// withoutLayers stops a fetch before layers.
func withoutLayers(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(desc.MediaType) {
			return nil, images.ErrSkipDesc
		}
		return h.Handle(ctx, desc)
	})
}
