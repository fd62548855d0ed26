package loopdev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/keylock"
	"berth.dev/berth/internal/durable"
)

// meta is what a volume's or snapshot's file does not say itself.
type meta struct {
	// Source is the snapshot a volume was made from, or the volume a snapshot was taken of.
	Source  string    `json:"source,omitempty"`
	Created time.Time `json:"created"`
}

// object is a volume or a snapshot as it lies on the disk.
type object struct {
	meta
	sizeBytes int64
}

// files are those below the driver's directory. Of one volume or snapshot, one operation runs at a time.
type files struct {
	dir string
	// keys of the volumes, snapshots and names that an operation is about now.
	keys keylock.Set
	// crash, in tests, is called between steps.
	crash func(step string)
}

// load is ErrNotFound if there is none of that name.
func (d *files) load(kind, name string) (object, error) {
	info, err := os.Stat(d.path(kind, name, diskFile))
	if errors.Is(err, os.ErrNotExist) {
		return object{}, blockdev.ErrNotFound
	}
	if err != nil {
		return object{}, err
	}
	data, err := os.ReadFile(d.path(kind, name, metaFile))
	if err != nil {
		return object{}, err
	}
	o := object{sizeBytes: info.Size()}
	if err := json.Unmarshal(data, &o.meta); err != nil {
		return object{}, fmt.Errorf("read %s: %w", d.path(kind, name, metaFile), err)
	}
	return o, nil
}

// names of all volumes or snapshots.
func (d *files) names(kind string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, kind))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if checkName(kind, e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// make makes a volume or snapshot whose bytes put leaves at a path, synced. It is there whole or not at all: content
// first, then its directory, then the name.
func (d *files) make(kind, name string, m meta, put func(path string) error) (err error) {
	temp, err := os.MkdirTemp(filepath.Join(d.dir, kind), tempPrefix+"new-")
	if err != nil {
		return full(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(full(err), os.RemoveAll(temp))
		}
	}()
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(temp, metaFile), func(f *os.File) error {
		_, err := f.Write(data)
		return err
	}); err != nil {
		return err
	}
	if err := put(filepath.Join(temp, diskFile)); err != nil {
		return err
	}
	d.crash("put")
	if err := syncDir(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, d.path(kind, name)); err != nil {
		return err
	}
	d.crash("named")
	return syncDir(filepath.Join(d.dir, kind))
}

// remove takes the name away first, so that what is left by a crash is not taken for a whole one.
func (d *files) remove(kind, name string) error {
	temp := filepath.Join(d.dir, kind, tempPrefix+"old-"+name)
	err := os.Rename(d.path(kind, name), temp)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := syncDir(filepath.Join(d.dir, kind)); err != nil {
		return err
	}
	return os.RemoveAll(temp)
}

// writeSynced makes a file. One that it could not fill is gone again.
func writeSynced(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// full adds the class to errors that mean the storage is full.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%w: %w", err, blockdev.ErrNoSpace)
	}
	return err
}

func (d *files) get(ctx context.Context, kind, name string) (object, error) {
	if err := ctx.Err(); err != nil {
		return object{}, err
	}
	if checkName(kind, name) != nil {
		return object{}, blockdev.ErrNotFound
	}
	return d.load(kind, name)
}

func (d *files) each(ctx context.Context, kind string, do func(string, object)) error {
	names, err := d.names(kind)
	if err != nil {
		return err
	}
	for _, name := range names {
		o, err := d.get(ctx, kind, name)
		if errors.Is(err, blockdev.ErrNotFound) {
			continue // deleted since the listing
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		do(name, o)
	}
	return nil
}

// sweep deletes what creations and deletions left that did not come to their end.
func (d *files) sweep() error {
	for _, kind := range []string{volumesDir, snapshotsDir, attachmentsDir} {
		entries, err := os.ReadDir(filepath.Join(d.dir, kind))
		if err != nil {
			return err
		}
		for _, e := range entries {
			// A volume may have a name that ends so.
			record := kind == attachmentsDir && strings.HasSuffix(e.Name(), durable.TempSuffix)
			if !record && !strings.HasPrefix(e.Name(), tempPrefix) {
				continue
			}
			if err := os.RemoveAll(filepath.Join(d.dir, kind, e.Name())); err != nil {
				return fmt.Errorf("delete leftover: %w", err)
			}
		}
	}
	return nil
}

// path of a file of a volume or snapshot. The name has been checked.
func (d *files) path(kind, name string, file ...string) string {
	return filepath.Join(append([]string{d.dir, kind, name}, file...)...)
}
