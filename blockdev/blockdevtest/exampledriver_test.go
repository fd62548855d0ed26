package blockdevtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/keylock"
	"berth.dev/berth/internal/durable"
)

// exampleDriver is the small driver that docs/adding-a-driver.md points to: a volume or volume snapshot is a sparse
// file in a directory, with a record beside it; a device is a loop device. IDs are the names.
//
// The record is written before the file is made, and taken away after the file: whatever a crash leaves is listed, made
// whole when the same request comes again, and deleted by its name.
type exampleDriver struct {
	dir  string
	keys keylock.Set
}

var (
	_ blockdev.Attacher          = (*exampleDriver)(nil)
	_ blockdev.Provisioner       = (*exampleDriver)(nil)
	_ blockdev.VolumeSnapshotter = (*exampleDriver)(nil)
)

const (
	volumes   = ".volume"
	snapshots = ".snapshot"
	records   = ".json"
	// exampleTag tells our loop devices from those that others make of the same files.
	exampleTag = "berth-example"
)

// record of a volume or volume snapshot. Source is what it was copied from, empty for a blank volume.
type record struct {
	Name, Source string
	SizeBytes    int64
	Created      time.Time
	Complete     bool
}

func (r record) volume() blockdev.Volume {
	return blockdev.Volume{ID: r.Name, Name: r.Name, SizeBytes: r.SizeBytes, SourceVolumeSnapshotID: r.Source}
}

func (r record) snapshot() blockdev.VolumeSnapshot {
	return blockdev.VolumeSnapshot{ID: r.Name, Name: r.Name, SourceVolumeID: r.Source, SizeBytes: r.SizeBytes, Created: r.Created, ReadyToUse: r.Complete}
}

func (*exampleDriver) Properties() blockdev.Properties {
	return blockdev.Properties{ReadOnlyAttach: true, VolumeSnapshots: true}
}

func (d *exampleDriver) Attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (dev blockdev.Device, err error) {
	err = d.do(ctx, "attach volume", volumeID, volumes, func(path string) error {
		r, err := load(path)
		if err != nil {
			return err
		}
		if !r.Complete {
			return blockdev.ErrNotReady
		}
		loop, found, err := loopOf(path)
		if err == nil && !found {
			loop, err = device.AttachLoop(ctx, path, device.LoopOptions{ReadOnly: opts.ReadOnly, Tag: exampleTag})
		}
		if err == nil && loop.ReadOnly != opts.ReadOnly {
			err = fmt.Errorf("it is attached with read-only %v: %w", loop.ReadOnly, blockdev.ErrExists)
		}
		dev = blockdev.Device{Path: loop.Path, ReadOnly: loop.ReadOnly}
		return err
	})
	return dev, err
}

func (d *exampleDriver) Detach(ctx context.Context, volumeID string) error {
	return d.do(ctx, "detach volume", volumeID, volumes, func(path string) error {
		loop, found, err := loopOf(path)
		if err != nil || !found {
			return err
		}
		return device.DetachLoop(ctx, loop) // asks device.InUse itself
	})
}

func (d *exampleDriver) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	attached := map[string]blockdev.Device{}
	err := d.each(ctx, volumes, func(r record) error {
		loop, found, err := loopOf(filepath.Join(d.dir, r.Name+volumes))
		if found {
			attached[r.Name] = blockdev.Device{Path: loop.Path, ReadOnly: loop.ReadOnly}
		}
		return err
	})
	return attached, err
}

func (d *exampleDriver) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (v blockdev.Volume, err error) {
	err = d.do(ctx, "create volume", req.Name, volumes, func(path string) error {
		from := ""
		if req.SourceVolumeSnapshotID != "" {
			if from, err = d.path(req.SourceVolumeSnapshotID, snapshots); err != nil {
				return err
			}
		}
		r, err := create(ctx, path, record{Name: req.Name, Source: req.SourceVolumeSnapshotID, SizeBytes: req.SizeBytes}, from)
		v = r.volume()
		return err
	})
	return v, err
}

func (d *exampleDriver) DeleteVolume(ctx context.Context, volumeID string) error {
	return d.do(ctx, "delete volume", volumeID, volumes, func(path string) error {
		_, attached, err := loopOf(path)
		if err == nil && attached {
			err = fmt.Errorf("it is attached: %w", blockdev.ErrInUse)
		}
		if err != nil {
			return err
		}
		return remove(path)
	})
}

func (d *exampleDriver) GetVolume(ctx context.Context, volumeID string) (v blockdev.Volume, err error) {
	err = d.do(ctx, "get volume", volumeID, volumes, func(path string) error {
		r, err := load(path)
		v = r.volume()
		return err
	})
	return v, err
}

func (d *exampleDriver) ListVolumes(ctx context.Context) (list []blockdev.Volume, err error) {
	err = d.each(ctx, volumes, func(r record) error { list = append(list, r.volume()); return nil })
	return list, err
}

func (d *exampleDriver) CreateVolumeSnapshot(ctx context.Context, name, sourceVolumeID string) (s blockdev.VolumeSnapshot, err error) {
	err = d.do(ctx, "create volume snapshot", name, snapshots, func(path string) error {
		return d.do(ctx, "read volume", sourceVolumeID, volumes, func(from string) error {
			r, err := create(ctx, path, record{Name: name, Source: sourceVolumeID}, from)
			s = r.snapshot()
			return err
		})
	})
	return s, err
}

func (d *exampleDriver) DeleteVolumeSnapshot(ctx context.Context, snapshotID string) error {
	return d.do(ctx, "delete volume snapshot", snapshotID, snapshots, remove)
}

func (d *exampleDriver) GetVolumeSnapshot(ctx context.Context, snapshotID string) (s blockdev.VolumeSnapshot, err error) {
	err = d.do(ctx, "get volume snapshot", snapshotID, snapshots, func(path string) error {
		r, err := load(path)
		s = r.snapshot()
		return err
	})
	return s, err
}

func (d *exampleDriver) ListVolumeSnapshots(ctx context.Context) (list []blockdev.VolumeSnapshot, err error) {
	err = d.each(ctx, snapshots, func(r record) error { list = append(list, r.snapshot()); return nil })
	return list, err
}

// path of an object. Names and IDs come from people and from catalogs of others: one that leads elsewhere is refused.
func (d *exampleDriver) path(id, kind string) (string, error) {
	if id == "" || len(id) > 200 || id != filepath.Base(id) || id[0] == '.' {
		return "", fmt.Errorf("name %q: %w", id, blockdev.ErrInvalid)
	}
	return filepath.Join(d.dir, id+kind), nil
}

// do runs the one operation that there is at a time on an object, and gives errors their class.
func (d *exampleDriver) do(ctx context.Context, doing, id, kind string, operation func(path string) error) error {
	path, err := d.path(id, kind)
	if err == nil {
		err = d.keys.Do(ctx, path, func() error { return operation(path) })
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: %w", blockdev.ErrNoSpace, err)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", doing, id, err)
	}
	return nil
}

func (d *exampleDriver) each(ctx context.Context, kind string, do func(record) error) error {
	paths, err := filepath.Glob(filepath.Join(d.dir, "*"+kind+records))
	for _, path := range paths {
		r, found, readErr := durable.Read[record](path)
		if err = errors.Join(ctx.Err(), readErr); err == nil && found {
			err = do(r)
		}
		if err != nil {
			return fmt.Errorf("list %ss: %w", kind[1:], err)
		}
	}
	return err
}

func load(path string) (record, error) {
	r, found, err := durable.Read[record](path + records)
	if err == nil && !found {
		err = blockdev.ErrNotFound
	}
	return r, err
}

// create makes the object wanted, or finds it. An answer that it was refused leaves nothing behind.
func create(ctx context.Context, path string, want record, from string) (record, error) {
	have, found, err := durable.Read[record](path + records)
	if err != nil {
		return record{}, err
	}
	if found && (have.Source != want.Source || want.SizeBytes != 0 && have.SizeBytes != want.SizeBytes) {
		return record{}, blockdev.ErrExists
	}
	if found && have.Complete {
		return have, nil // also if its source is gone by now
	}
	if from != "" {
		source, err := load(from)
		if err == nil && !source.Complete {
			err = blockdev.ErrNotReady
		}
		if err == nil {
			err = quiet(from)
		}
		if err != nil {
			return record{}, fmt.Errorf("%s: %w", filepath.Base(from), err)
		}
		if want.SizeBytes == 0 {
			want.SizeBytes = source.SizeBytes
		}
		if want.SizeBytes < source.SizeBytes {
			return record{}, fmt.Errorf("%d bytes are less than the %d of %s: %w", want.SizeBytes, source.SizeBytes, source.Name, blockdev.ErrInvalid)
		}
	}
	if want.SizeBytes <= 0 {
		return record{}, fmt.Errorf("size %d: %w", want.SizeBytes, blockdev.ErrInvalid)
	}
	want.Created = time.Now().UTC()
	err = durable.Write(path+records, want)
	if err == nil {
		err = write(ctx, path, from, want.SizeBytes)
	}
	if err == nil {
		want.Complete = true
		err = durable.Write(path+records, want)
	}
	if err != nil {
		return record{}, errors.Join(err, remove(path))
	}
	return want, nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return durable.Remove(path + records)
}

// write makes the file; a copy keeps the holes. It obeys ctx between pieces, and lets the file system share blocks.
func write(ctx context.Context, path, from string, size int64) error {
	to, err := os.Create(path)
	if err != nil {
		return err
	}
	defer to.Close()
	if from != "" {
		err = copyData(ctx, to, from)
	}
	return errors.Join(err, to.Truncate(size), to.Sync())
}

func copyData(ctx context.Context, to *os.File, path string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	const piece = 64 << 20
	for at := int64(0); ; {
		data, err := from.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		hole, holeErr := from.Seek(data, unix.SEEK_HOLE)
		at = min(hole, data+piece)
		_, fromErr := from.Seek(data, io.SeekStart)
		_, toErr := to.Seek(data, io.SeekStart)
		if err := errors.Join(ctx.Err(), err, holeErr, fromErr, toErr); err != nil {
			return err
		}
		if _, err := io.CopyN(to, from, at-data); err != nil {
			return err
		}
	}
}

// quiet refuses a volume that is attached for writing: what is written may still be on its way to the file.
func quiet(path string) error {
	loop, attached, err := loopOf(path)
	if err == nil && attached && !loop.ReadOnly {
		err = fmt.Errorf("attached for writing: %w", blockdev.ErrInUse)
	}
	return err
}

// loopOf finds the device of a file: the kernel knows it, so nothing about it has to be written down.
func loopOf(path string) (loop device.Loop, found bool, err error) {
	loops, err := device.FindLoops(path)
	if errors.Is(err, blockdev.ErrNotFound) {
		return loop, false, nil
	}
	i := slices.IndexFunc(loops, func(l device.Loop) bool { return l.Tag == exampleTag })
	if err != nil || i < 0 {
		return loop, false, err
	}
	return loops[i], true, nil
}
