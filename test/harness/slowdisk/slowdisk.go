// Package slowdisk makes disks that are slow as volumes are that a cloud restores lazily: the first read of each block
// costs milliseconds. A disk is a FUSE file, to be attached like any other file; the process behind it counts, and can
// hold up or fail reads.
//
// Whatever happens to a test, its disk's process ends with it, and then the kernel fails all reads of the file: nothing
// hangs.
package slowdisk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/mountinfo"

	"berth.dev/berth/test/harness/mounts"
	"berth.dev/berth/test/harness/process"
	"berth.dev/berth/test/harness/slowdisk/lazy"
	"berth.dev/berth/test/harness/tools"
	"berth.dev/berth/test/harness/wait"
)

const (
	startTimeout = time.Minute
	stopGrace    = 20 * time.Second
)

// Config of a disk.
type Config struct {
	// Dir that the disk is made in, short as every path of a unix socket.
	Dir string
	// File with the bytes; it must not change.
	File  string
	Speed lazy.Speed
}

// Disk that is served. Close it after use.
type Disk struct {
	dir    string
	proc   *process.Process
	client *http.Client
	// mounted is set when the disk has been there.
	mounted bool
}

// Start serves the file as a slow one, of which nothing is restored yet.
func Start(ctx context.Context, cfg Config) (_ *Disk, err error) {
	d := &Disk{dir: cfg.Dir}
	if err := os.MkdirAll(d.mountPoint(), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of slow disk: %w", err)
	}
	program := filepath.Join(cfg.Dir, "serve")
	if err := tools.Build(ctx, program, "./test/harness/slowdisk/serve"); err != nil {
		return nil, err
	}
	speed, err := json.Marshal(cfg.Speed)
	if err != nil {
		return nil, fmt.Errorf("encode speed: %w", err)
	}
	d.proc, err = process.Start(ctx, process.Spec{Name: "slowdisk", LogDir: cfg.Dir, Args: []string{
		program, "-mount", d.mountPoint(), "-file", cfg.File, "-socket", d.socket(), "-speed", string(speed),
	}})
	if err != nil {
		return nil, err
	}
	d.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.socket())
	}}}
	var ended error
	err = wait.Until(ctx, startTimeout, "the slow disk to be there", func(context.Context) error {
		if ended = d.proc.Err(); ended != nil {
			return nil //nolint:nilerr // ends the waiting; joined below
		}
		_, err := os.Stat(d.Path())
		return err
	})
	if err = errors.Join(ended, err); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.mounted = true
	return d, nil
}

func (d *Disk) mountPoint() string { return filepath.Join(d.dir, "m") }
func (d *Disk) socket() string     { return filepath.Join(d.dir, "s.sock") }

// Path of the slow file.
func (d *Disk) Path() string { return filepath.Join(d.mountPoint(), "disk") }

// Stats until now.
func (d *Disk) Stats(ctx context.Context) (s lazy.Stats, err error) {
	body, err := d.call(ctx, http.MethodGet, "stats")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("decode figures of slow disk: %w", err)
	}
	return s, nil
}

// Hold up all reads that begin from now on.
func (d *Disk) Hold(ctx context.Context) error { return d.order(ctx, "hold") }

// Release what is held up.
func (d *Disk) Release(ctx context.Context) error { return d.order(ctx, "release") }

// Fail all reads that begin from now on with an I/O error.
func (d *Disk) Fail(ctx context.Context) error { return d.order(ctx, "fail") }

// Mend ends Fail.
func (d *Disk) Mend(ctx context.Context) error { return d.order(ctx, "mend") }

func (d *Disk) order(ctx context.Context, what string) error {
	_, err := d.call(ctx, http.MethodPost, what)
	return err
}

func (d *Disk) call(ctx context.Context, method, what string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://disk/"+what, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask slow disk: %w", err)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask slow disk: %w", errors.Join(err, d.proc.Err()))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("ask slow disk: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask slow disk to %s: %s", what, resp.Status)
	}
	return body, nil
}

// Kill the process, as a crash does: reads of the file fail from now on.
func (d *Disk) Kill() error { return d.proc.Kill() }

// Close ends the process and unmounts. Loop devices of the file must be detached before; where they are not, the mount
// is detached from the tree and their reads fail. It is an error if somebody else has unmounted it: loop devices that
// were on it then are left and nobody can tell whose they were.
func (d *Disk) Close() error {
	var errs []error
	if d.mounted {
		// Not mountinfo.Mounted, which looks at the directory: that of a dead process does not answer.
		there, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(d.mountPoint()))
		if err == nil && len(there) == 0 {
			err = fmt.Errorf("%s was unmounted by somebody else", d.mountPoint())
		}
		errs = append(errs, err)
	}
	if d.client != nil {
		d.client.CloseIdleConnections()
	}
	if d.proc != nil {
		errs = append(errs, d.proc.Stop(stopGrace))
	}
	errs = append(errs, mounts.UnmountBelow(d.dir)) // of a process that was killed
	return errors.Join(errs...)
}
