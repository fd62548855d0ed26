// Package attached is the driver of disks that are already there: that the cloud attaches with the machine, that
// another tool attaches, or that a person plugs in. It makes nothing appear and nothing go away. It finds the layer
// disks among the node's block devices by what is on them, and the device of a volume by what the cloud's naming says,
// and keeps others from writing to what is in use.
//
// A volume ID is SCHEME:ID. "index:sha256:…" is the layer disk with that index, on whatever device; "aws:vol-0123…",
// "azure:3" and so on name a volume as its cloud does, see rules.go. What such a name leads to still has to be proved.
package attached

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/sysblock"
	"berth.dev/berth/internal/durable"
)

// Name of the driver.
const Name = "attached"

// Config of a Driver.
type Config struct {
	Options
	// Dir is a directory of the driver's own, made if it is missing, where it writes down what it has attached. One
	// process may use it at a time.
	Dir string
	// Wait bounds how long Attach waits for a device to appear; 0 waits until its context ends.
	Wait time.Duration
}

// Driver implements blockdev.Attacher. It is safe for concurrent use.
type Driver struct {
	scanner *scanner
	// claims are guarded by key, which is held while what is attached changes or is looked up.
	claims claims
	key    chan struct{}
	wait   time.Duration
	// rescan holds one request to look at all devices again.
	rescan chan struct{}
	// devices rings when devices may have changed.
	devices *bell
}

var _ blockdev.Attacher = (*Driver)(nil)

// Open makes a driver. It looks at no device.
func Open(cfg Config) (*Driver, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open driver of attached disks: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open driver of attached disks: %w", err)
	}
	s := newScanner(cfg.Options)
	return &Driver{
		scanner: s,
		claims:  claims{dir: cfg.Dir, boot: strings.TrimSpace(string(boot)), roots: s.opts.Roots},
		key:     make(chan struct{}, 1),
		wait:    cfg.Wait,
		rescan:  make(chan struct{}, 1),
		devices: newBell(),
	}, nil
}

// Properties of the driver: there is no limit, because it attaches nothing that was not.
func (d *Driver) Properties() blockdev.Properties { return blockdev.Properties{ReadOnlyAttach: true} }

func (d *Driver) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case d.key <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *Driver) unlock() { <-d.key }

// lookEvery is how often a device that is waited for is looked for without an event: udev makes its links at an unknown
// time after the event, and events may be beyond reach.
const lookEvery = 500 * time.Millisecond

// Attach finds the device of a volume and waits for it until ctx ends, or as long as it was told. Attached read-only,
// which a layer disk always is, the device is made read-only for everybody until it is detached. A device that somebody
// uses is ErrInUse; a volume that is attached the other way, ErrExists; several devices that fit and hold different
// disks are errdefs.ErrFailedPrecondition.
func (d *Driver) Attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	dev, err := d.attach(ctx, volumeID, opts)
	if err != nil {
		return blockdev.Device{}, fmt.Errorf("attach volume %s: %w", volumeID, err)
	}
	return dev, nil
}

func (d *Driver) attach(ctx context.Context, id string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	v, err := parseVolumeID(id)
	if err != nil {
		return blockdev.Device{}, err
	}
	if v.scheme == schemeIndex && !opts.ReadOnly {
		return blockdev.Device{}, fmt.Errorf("a layer disk is attached read-only: %w", blockdev.ErrUnsupported)
	}
	var end <-chan time.Time
	if d.wait > 0 {
		timer := time.NewTimer(d.wait)
		defer timer.Stop()
		end = timer.C
	}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for asked := false; ; {
		changed := d.devices.next()
		dev, err := d.attachNow(ctx, v, id, opts)
		if !errors.Is(err, errAbsent) {
			return dev, err
		}
		if v.rule.rescan && !asked {
			asked = true
			if askErr := askSCSIHosts(d.scanner.opts.Roots); askErr != nil {
				return blockdev.Device{}, errors.Join(err, askErr)
			}
		}
		select {
		case <-changed:
		case <-ticker.C:
		case <-end:
			return blockdev.Device{}, err
		case <-ctx.Done():
			return blockdev.Device{}, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// attachNow does not wait for a device.
func (d *Driver) attachNow(ctx context.Context, v volumeID, id string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	dev, ok, err := d.attachedAlready(ctx, id, opts)
	if err != nil {
		return dev, err
	}
	if ok {
		return d.move(ctx, v, id, dev)
	}
	// Reading devices may take time, so it is done without the key.
	candidates, err := d.scanner.find(ctx, v, opts.Index)
	if err != nil {
		return blockdev.Device{}, err
	}
	if err := d.lock(ctx); err != nil {
		return blockdev.Device{}, err
	}
	defer d.unlock()
	// Another call may have been faster.
	if dev, ok, err := d.claims.attachment(id, opts); err != nil || ok {
		return dev, err
	}
	var errs []error
	for _, c := range candidates {
		dev, err := d.claims.claim(id, c, opts)
		if err == nil {
			return dev, nil
		}
		errs = append(errs, err)
	}
	return blockdev.Device{}, errors.Join(errs...)
}

func (d *Driver) attachedAlready(ctx context.Context, id string, opts blockdev.AttachOptions) (blockdev.Device, bool, error) {
	if err := d.lock(ctx); err != nil {
		return blockdev.Device{}, false, err
	}
	defer d.unlock()
	return d.claims.attachment(id, opts)
}

// Detach lets the device go: it is writable again if Attach made it read-only. It stays attached to the node.
func (d *Driver) Detach(ctx context.Context, volumeID string) error {
	err := d.lock(ctx)
	if err == nil {
		defer d.unlock()
		var (
			r  record
			ok bool
		)
		if r, ok, err = durable.Read[record](d.claims.path(volumeID)); err == nil && ok {
			err = d.claims.release(r)
		}
	}
	if err != nil {
		return fmt.Errorf("detach volume %s: %w", volumeID, err)
	}
	return nil
}

// Attached lists the volumes that were attached here and whose devices are there.
func (d *Driver) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	err := d.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("list attached volumes: %w", err)
	}
	defer d.unlock()
	records, err := d.claims.records()
	all := make(map[string]blockdev.Device, len(records))
	for _, r := range records {
		if err != nil {
			break
		}
		var (
			dev blockdev.Device
			ok  bool
		)
		if dev, ok, err = d.claims.current(r); ok {
			all[r.VolumeID] = dev
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list attached volumes: %w", err)
	}
	return all, nil
}

// bell wakes all who wait for it. It is safe for concurrent use.
type bell struct {
	mu   sync.Mutex // guards rung
	rung chan struct{}
}

func newBell() *bell { return &bell{rung: make(chan struct{})} }

// next is closed when the bell rings for the first time after this call.
func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rung
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.rung)
	b.rung = make(chan struct{})
}

// askSCSIHosts has every SCSI host look for new devices, as rescan-scsi-bus does; Hyper-V does not always tell by
// itself.
func askSCSIHosts(roots sysblock.Roots) error {
	files, err := filepath.Glob(filepath.Join(roots.Sys, "class", "scsi_host", "*", "scan"))
	if err != nil {
		return fmt.Errorf("find SCSI hosts: %w", err)
	}
	var errs []error
	for _, file := range files {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			errs = append(errs, fmt.Errorf("ask SCSI host for new devices: %w", err))
			continue
		}
		_, err = f.WriteString("- - -")
		if err := errors.Join(err, f.Close()); err != nil {
			errs = append(errs, fmt.Errorf("ask SCSI host for new devices: %w", err))
		}
	}
	return errors.Join(errs...)
}
