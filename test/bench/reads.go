package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/machine"
)

// rounds of each read; the median counts.
const rounds = 5

// reads measures cold sequential reads of the largest file of an image by a container, from the layer disk, and of as
// many bytes of the same device.
func (b *bench) reads(ctx context.Context, disk string) (err error) {
	s := b.images[len(b.images)-1]
	m, err := machine.Start(ctx, machine.Options{
		Dir: filepath.Join(b.dir, "m"), Bin: b.bin, Snapshotter: berth.PluginName, Disks: []string{disk},
	})
	defer func() { err = errors.Join(err, m.Close()) }() //nolint:contextcheck // also after the end of ctx
	if err != nil {
		return err
	}
	if _, err := m.Pull(ctx, b.reg, s.ref, s.check); err != nil {
		return err
	}
	status, err := m.Berthd.Status(ctx)
	if err != nil {
		return err
	}
	if len(status.Disks) != 1 || status.Disks[0].Device == "" {
		return fmt.Errorf("berthd names no device: %+v", status.Disks)
	}
	opts := containerd.RunOptions{Snapshotter: berth.PluginName}
	out, err := m.Containerd.Run(ctx, s.ref, "find", opts, "sh", "-c", "find / -xdev -type f -printf '%s %p\\n' | sort -n | tail -n 1")
	if err != nil {
		return err
	}
	size, file, ok := strings.Cut(strings.TrimSpace(out), " ")
	bytes, err := strconv.ParseInt(size, 10, 64)
	if !ok || err != nil {
		return fmt.Errorf("find the largest file: %q", out)
	}
	var inContainer, fromDevice []float64
	for i := range rounds {
		seconds, err := readInContainer(ctx, m, s, fmt.Sprintf("read%d", i), file)
		if err != nil {
			return err
		}
		inContainer = append(inContainer, float64(bytes)/1e6/seconds)
		if seconds, err = readDevice(status.Disks[0].Device, bytes); err != nil {
			return err
		}
		fromDevice = append(fromDevice, float64(bytes)/1e6/seconds)
	}
	part := fmt.Sprintf("cold reads (%s, %.0f MB, median of %d)", file, float64(bytes)/1e6, rounds)
	b.report.add(part, "a container's file on the layer disk", median(inContainer), "MB/s")
	b.report.add(part, "the device", median(fromDevice), "MB/s")
	b.report.atLeast(part, "file against device", median(inContainer)/median(fromDevice), 0.95)
	return nil
}

// middle is the one whose value is the median.
func middle[T any](all []T, value func(T) float64) T {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b T) int { return cmp.Compare(value(a), value(b)) })
	return sorted[len(sorted)/2]
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// dropCaches makes the next reads go to the device.
func dropCaches() error {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200); err != nil {
		return fmt.Errorf("drop caches: %w", err)
	}
	return nil
}

// readInContainer takes the time that dd says it took, so that the container's start is not in it.
func readInContainer(ctx context.Context, m *machine.Machine, s subject, name, file string) (float64, error) {
	if err := dropCaches(); err != nil {
		return 0, err
	}
	// The program and its libraries are read before.
	script := "dd if=/bin/dd of=/dev/null 2>/dev/null; exec env LC_ALL=C dd if=" + file + " of=/dev/null bs=1M 2>&1"
	out, err := m.Containerd.Run(ctx, s.ref, name, containerd.RunOptions{Snapshotter: berth.PluginName}, "sh", "-c", script)
	if err != nil {
		return 0, err
	}
	found := regexp.MustCompile(`copied, ([0-9.e-]+) s`).FindStringSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("dd says %q", out)
	}
	return strconv.ParseFloat(found[1], 64)
}

// readDevice reads from the middle of the device, as a file would be.
func readDevice(device string, bytes int64) (float64, error) {
	if err := dropCaches(); err != nil {
		return 0, err
	}
	f, err := os.Open(device)
	if err != nil {
		return 0, fmt.Errorf("open device: %w", err)
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("find end of device: %w", err)
	}
	if _, err := f.Seek(max(0, (end-bytes)/2)&^0xfff, io.SeekStart); err != nil {
		return 0, fmt.Errorf("seek device: %w", err)
	}
	block := make([]byte, 1<<20)
	start := time.Now()
	for left := bytes; left > 0; {
		n, err := f.Read(block[:min(left, int64(len(block)))])
		if err != nil {
			return 0, fmt.Errorf("read device: %w", err)
		}
		left -= int64(n)
	}
	return time.Since(start).Seconds(), nil
}
