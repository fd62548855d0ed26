package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/wait"
)

// imageSnapshots measures how long a user waits until an image snapshot is usable: plainly, with Flash, and with layers
// that another one has. The storage is the embedded driver, whose volume snapshots take next to no time: what Flash
// saves would be minutes where a cloud takes them.
func (b *bench) imageSnapshots(ctx context.Context, _ string) (err error) {
	d, err := berth.New(berth.Config{Dir: filepath.Join(b.dir, "isnap"), Bin: b.bin})
	if err != nil {
		return err
	}
	if err := d.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	const part = "image snapshots"
	small, most := b.images[0], b.images[len(b.images)-1]
	// In turns, because whatever else the machine does comes and goes.
	var plain, usable, complete, saved []float64
	for i := range 3 {
		p, err := b.makeSnapshot(ctx, d, fmt.Sprintf("plain-%d", i), []string{most.ref})
		if err != nil {
			return err
		}
		f, err := b.makeSnapshot(ctx, d, fmt.Sprintf("flash-%d", i), []string{most.ref}, "--flash")
		if err != nil {
			return err
		}
		plain, usable = append(plain, p.usable.Seconds()), append(usable, f.usable.Seconds())
		complete, saved = append(complete, f.complete.Seconds()), append(saved, (f.complete-f.usable).Seconds())
	}
	b.report.add(part, most.Name+", until it is usable (median of 3)", median(plain), "s")
	b.report.add(part, most.Name+" with flash, until it is usable", median(usable), "s")
	b.report.add(part, most.Name+" with flash, until the volume snapshot is complete", median(complete), "s")
	b.report.add(part, most.Name+", earlier by flash", median(saved), "s")
	b.reg.Reset()
	reused, err := b.makeSnapshot(ctx, d, "reused", []string{most.ref, small.ref}, "--reuse-layers")
	if err != nil {
		return err
	}
	b.report.add(part, most.Name+" and small, layers of the first reused", reused.usable.Seconds(), "s")
	b.report.add(part, "blob bytes fetched for that", float64(b.reg.Bytes())/1e6, "MB")
	return nil
}

// made is how long an image snapshot took.
type made struct {
	// usable is until nodes may use it, complete until the regular volume snapshot is there.
	usable, complete time.Duration
}

func (b *bench) makeSnapshot(ctx context.Context, d *berth.Daemon, name string, images []string, flags ...string) (m made, err error) {
	args := []string{"image-snapshot", "create", name, "--size", "auto", "--wait", "--plain-http", b.reg.Host(), "--reuse-layers=false"}
	for _, ref := range images {
		args = append(args, "--image", ref)
	}
	begin := time.Now()
	if _, err := d.CLI(ctx, append(args, flags...)...); err != nil {
		return m, err
	}
	m.usable = time.Since(begin)
	const most = 10 * time.Minute
	err = wait.Until(ctx, most, "the volume snapshot of "+name+" to be complete", func(ctx context.Context) error {
		out, err := d.CLI(ctx, "image-snapshot", "get", name, "--json")
		if err != nil {
			return err
		}
		var v struct {
			Status struct {
				Progress int `json:"progress"`
			} `json:"status"`
		}
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			return err
		}
		if v.Status.Progress < 100 {
			return fmt.Errorf("it is at %d percent", v.Status.Progress)
		}
		return nil
	})
	m.complete = time.Since(begin)
	return m, err
}
