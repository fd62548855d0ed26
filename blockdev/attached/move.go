package attached

import (
	"context"
	"errors"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/sysblock"
	"berth.dev/berth/internal/durable"
)

// move gives another device that has the same layer disk, if the one it is attached on does not show it any more: it
// gives errors, or was written to. The old one may still be mounted, so its read-only flag stays as it is. Without
// another device the old one is the answer, and whoever uses it will see.
func (d *Driver) move(ctx context.Context, v volumeID, id string, dev blockdev.Device) (blockdev.Device, error) {
	if v.scheme != schemeIndex {
		return dev, nil
	}
	number, err := device.Number(dev.Path)
	if errors.Is(err, blockdev.ErrNotFound) {
		return blockdev.Device{}, errAbsent
	}
	if err != nil {
		return blockdev.Device{}, err
	}
	all, err := sysblock.List(d.scanner.opts.Roots)
	if err != nil {
		return blockdev.Device{}, err
	}
	for _, old := range all {
		if old.Number != number {
			continue
		}
		d.scanner.headers.forget(old.Name)
		f := d.scanner.headers.look(ctx, old)
		if err := ctx.Err(); err != nil {
			return blockdev.Device{}, err
		}
		if f.err == nil && f.header.IndexDigest.String() == v.id {
			break
		}
		return d.moveFrom(ctx, v, id, old, dev)
	}
	return dev, nil
}

func (d *Driver) moveFrom(ctx context.Context, v volumeID, id string, old sysblock.Device, dev blockdev.Device) (blockdev.Device, error) {
	candidates, err := d.scanner.find(ctx, v, "")
	if errors.Is(err, errAbsent) {
		return dev, nil
	}
	if err != nil {
		return blockdev.Device{}, err
	}
	if err := d.lock(ctx); err != nil {
		return blockdev.Device{}, err
	}
	defer d.unlock()
	r, ok, err := durable.Read[record](d.claims.path(id))
	if err != nil {
		return blockdev.Device{}, err
	}
	if !ok || !r.of(old) {
		return blockdev.Device{}, errAbsent // another call was faster; the next look finds what it did
	}
	for _, c := range candidates {
		if c.Same(old) {
			continue
		}
		if got, err := d.claims.claim(id, c, blockdev.AttachOptions{ReadOnly: true}); err == nil {
			return got, nil
		}
	}
	// The attempts have taken the record with them.
	return dev, d.claims.write(r)
}
