package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/recorder"
	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/machine"
	"berth.dev/berth/test/harness/slowdisk"
	"berth.dev/berth/test/harness/slowdisk/lazy"
)

// slowRounds of each way.
const slowRounds = 3

// started is one pull and start on a disk that is restored while it is used.
type started struct {
	ready    float64 // seconds from the begin of the pull to the end of the program
	pull     float64
	restored lazy.Stats
}

// slow measures the time from the begin of a pull to a Python program that has loaded its libraries, with the image on
// a disk that restores its blocks when they are first read: without reading ahead, with an access list, and with that
// and a disk that has the files of the list together; against a pull to the local disk.
func (b *bench) slow(ctx context.Context, _ string) error {
	plain, placed := filepath.Join(b.dir, "scipy.img"), filepath.Join(b.dir, "placed.img")
	listFile := filepath.Join(b.dir, "scipy.list")
	if err := b.buildDisk(ctx, plain); err != nil {
		return err
	}
	if err := b.record(ctx, plain, listFile); err != nil {
		return fmt.Errorf("record the start: %w", err)
	}
	if err := b.buildDisk(ctx, placed, "--access-list", listFile); err != nil {
		return err
	}
	// Its metadata lies elsewhere: a list of its own.
	placedList := filepath.Join(b.dir, "placed.list")
	if err := b.record(ctx, placed, placedList); err != nil {
		return fmt.Errorf("record the start: %w", err)
	}
	pulled, err := b.pullMedian(ctx, b.scipy, machine.Options{Snapshotter: machine.Overlayfs})
	if err != nil {
		return err
	}
	pulledFast, err := b.pullMedian(ctx, b.scipy, machine.Options{Snapshotter: machine.Overlayfs, Unpacks: 4})
	if err != nil {
		return err
	}
	overlay := (pulled.Time + pulled.Run).Seconds()
	for _, speed := range slowSpeeds() {
		part := fmt.Sprintf("pull to ready, Python with scipy, on a disk that restores 512 KiB in %v and %d MB/s at first", speed.FirstTouch, speed.RestoreRate/1e6)
		none, err := b.slowMedian(ctx, plain, "", speed)
		if err != nil {
			return err
		}
		ahead, err := b.slowMedian(ctx, plain, listFile, speed)
		if err != nil {
			return err
		}
		together, err := b.slowMedian(ctx, placed, placedList, speed)
		if err != nil {
			return err
		}
		b.report.add(part, "overlayfs: pull and start", overlay, "s")
		b.report.add(part, "overlayfs, 4 at once: pull and start", (pulledFast.Time + pulledFast.Run).Seconds(), "s")
		b.reportStarted(part, "nothing read ahead", none, speed)
		b.reportStarted(part, "read ahead", ahead, speed)
		b.reportStarted(part, "read ahead, files together", together, speed)
		b.report.atLeast(part, "speed of reading ahead against nothing", none.ready/ahead.ready, 3)
		b.report.atLeast(part, "speed of reading ahead, files together, against nothing", none.ready/together.ready, 3)
		b.report.atMost(part, "time of reading ahead against overlayfs", ahead.ready/overlay, "x", 1.1)
	}
	return nil
}

// slowSpeeds are a fast, a typical and a slow one.
func slowSpeeds() []lazy.Speed {
	fast, typical, slow := lazy.Typical(), lazy.Typical(), lazy.Typical()
	fast.FirstTouch, fast.RestoreRate = 5*time.Millisecond, 200e6
	slow.FirstTouch, slow.RestoreRate = 10*time.Millisecond, 100e6
	return []lazy.Speed{fast, typical, slow}
}

func (b *bench) reportStarted(part, name string, s started, speed lazy.Speed) {
	b.report.add(part, name, s.ready, "s")
	b.report.add(part, name+": pull alone", s.pull, "s")
	b.report.add(part, name+": restored", float64(s.restored.Restored*speed.BlockBytes)/1e6, "MB")
	b.report.add(part, name+": that at the full rate", float64(s.restored.Restored*speed.BlockBytes)/float64(speed.RestoreRate), "s")
}

func (b *bench) buildDisk(ctx context.Context, disk string, options ...string) error {
	args := append([]string{"build", "-o", disk, "--plain-http", b.reg.Host()}, options...)
	_, err := berth.Run(ctx, b.bin, nil, append(args, b.scipy.ref)...)
	return err
}

// record what the program reads from a disk that is fast.
func (b *bench) record(ctx context.Context, disk, file string) (err error) {
	m, err := machine.Start(ctx, machine.Options{
		Dir: filepath.Join(b.dir, "m"), Bin: b.bin, Snapshotter: berth.PluginName, Disks: []string{disk},
		Berthd: func(c *berth.Config) { c.NoReadAhead = true },
	})
	defer func() { err = errors.Join(err, m.Close()) }() //nolint:contextcheck // also after the end of ctx
	if err != nil {
		return err
	}
	if _, err := m.Pull(ctx, b.reg, b.scipy.ref, []string{"/bin/true"}); err != nil {
		return err
	}
	target, err := recordTarget(ctx, m, disk)
	if err != nil {
		return err
	}
	if err := dropCaches(); err != nil {
		return err
	}
	recording, err := recorder.Start(ctx, target, recorder.MethodAny)
	if err != nil {
		return err
	}
	_, err = m.Containerd.Run(ctx, b.scipy.ref, "recorded", containerd.RunOptions{Snapshotter: berth.PluginName}, b.scipy.check...)
	if err != nil {
		return errors.Join(err, recording.Close())
	}
	list, _, err := recording.Stop(ctx)
	if err != nil {
		return err
	}
	list.Image, list.Platform = b.scipy.ref, "linux/amd64"
	return writeList(file, list)
}

func writeList(file string, list *accesslist.List) error {
	data, err := list.Encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("write access list: %w", err)
	}
	return nil
}

func recordTarget(ctx context.Context, m *machine.Machine, disk string) (recorder.Target, error) {
	status, err := m.Berthd.Status(ctx)
	if err != nil {
		return recorder.Target{}, err
	}
	f, err := os.Open(disk)
	if err != nil {
		return recorder.Target{}, fmt.Errorf("open disk: %w", err)
	}
	defer f.Close()
	ix, id, err := layerdisk.ReadIndex(f)
	if err != nil {
		return recorder.Target{}, err
	}
	target := recorder.Target{Device: status.Disks[0].Device, MountPoint: status.Disks[0].MountPoint, Disk: id.IndexDigest}
	for _, l := range ix.Layers {
		target.Layers = append(target.Layers, recorder.Layer{DiffID: l.DiffID, Path: layerdisk.LayerDir(l.Number)})
	}
	return target, nil
}

// slowMedian is the start of median time; without a list nothing is read ahead.
func (b *bench) slowMedian(ctx context.Context, disk, list string, speed lazy.Speed) (started, error) {
	var all []started
	for range slowRounds {
		s, err := b.slowStart(ctx, disk, list, speed)
		if err != nil {
			return s, err
		}
		all = append(all, s)
	}
	return middle(all, func(s started) float64 { return s.ready }), nil
}

func (b *bench) slowStart(ctx context.Context, disk, list string, speed lazy.Speed) (s started, err error) {
	dir := filepath.Join(b.dir, "s")
	d, err := slowdisk.Start(ctx, slowdisk.Config{Dir: dir, File: disk, Speed: speed})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, d.Close(), os.RemoveAll(dir)) }()
	m, err := machine.Start(ctx, machine.Options{
		Dir: filepath.Join(b.dir, "m"), Bin: b.bin, Snapshotter: berth.PluginName, Disks: []string{d.Path()},
		Berthd: func(c *berth.Config) { c.NoReadAhead = list == "" },
	})
	defer func() { err = errors.Join(err, m.Close()) }() //nolint:contextcheck // also after the end of ctx
	if err != nil {
		return s, err
	}
	if list != "" {
		if err := copyList(list, m.Berthd.ListsDir()); err != nil {
			return s, err
		}
	}
	if err := dropCaches(); err != nil {
		return s, err
	}
	p, err := m.Pull(ctx, b.reg, b.scipy.ref, b.scipy.check)
	if err != nil {
		return s, err
	}
	if p.Bytes > b.scipy.compressed/10 {
		return s, fmt.Errorf("pull of %s: %d bytes came from the registry", b.scipy.ref, p.Bytes)
	}
	s = started{ready: (p.Time + p.Run).Seconds(), pull: p.Time.Seconds()}
	s.restored, err = d.Stats(ctx)
	return s, err
}

func copyList(file, dir string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read access list: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of access lists: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, digest.FromBytes(data).Encoded()), data, 0o600); err != nil {
		return fmt.Errorf("write access list: %w", err)
	}
	return nil
}
