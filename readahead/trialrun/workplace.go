package trialrun

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/recorder"
)

// Names in the directory of a run. They are short because they are in mount options.
const (
	diskDir  = "d"
	rootDir  = "r"
	upperDir = "u"
	workDir  = "w"
)

// workplace is the directory of one run, whose name is the container's too. It is locked (flock) as long as the run
// lives.
type workplace struct {
	dir        string
	lock       *os.File
	containerd string
}

// newWorkplace makes a workplace. First it removes those of runs that were killed.
func newWorkplace(ctx context.Context, o Options) (*workplace, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("directory of trial runs %q is not absolute: %w", o.Dir, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(o.Dir, 0o711); err != nil { //nolint:gosec // what runs as another user has to pass through
		return nil, fmt.Errorf("make directory of trial runs: %w", err)
	}
	// Mounts cannot have symbolic links in their paths.
	dir, err := filepath.EvalSymlinks(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("find directory of trial runs: %w", err)
	}
	all, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	// Nobody makes or removes one meanwhile.
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := removeStale(ctx, dir, o.Containerd); err != nil {
		return nil, fmt.Errorf("remove what a trial run that was killed has left: %w", err)
	}
	w := &workplace{dir: filepath.Join(dir, uuid.NewString()[:8]), containerd: o.Containerd}
	if err := os.Mkdir(w.dir, 0o711); err != nil { //nolint:gosec // as above
		return nil, err
	}
	if w.lock, err = os.Open(w.dir); err != nil {
		return nil, errors.Join(err, os.Remove(w.dir))
	}
	err = unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for _, name := range []string{diskDir, rootDir, upperDir, workDir} {
		if err == nil {
			err = os.Mkdir(filepath.Join(w.dir, name), 0o755) //nolint:gosec // a container's root
		}
	}
	if err != nil {
		return nil, errors.Join(err, w.removeFiles())
	}
	return w, nil
}

// removeStale removes the workplaces that nobody has locked.
func removeStale(ctx context.Context, dir, containerd string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		w := &workplace{dir: filepath.Join(dir, e.Name()), containerd: containerd}
		if w.lock, err = os.Open(w.dir); err != nil {
			continue // gone by now
		}
		if unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			w.lock.Close()
			continue
		}
		if err := removeContainer(ctx, containerd, w.id()); err != nil {
			w.lock.Close()
			return err
		}
		if err := w.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *workplace) id() string              { return filepath.Base(w.dir) }
func (w *workplace) path(name string) string { return filepath.Join(w.dir, name) }

// mountDisk mounts the disk for this run alone.
func (w *workplace) mountDisk(ctx context.Context, disk string, img *onDisk) (recorder.Target, error) {
	t := recorder.Target{MountPoint: w.path(diskDir), Disk: img.identity.IndexDigest}
	for _, l := range img.layers {
		t.Layers = append(t.Layers, recorder.Layer{DiffID: l.DiffID, Path: layerdisk.LayerDir(l.Number)})
	}
	var err error
	if t.Device, err = recorder.ColdMount(ctx, disk, t.MountPoint, fsmount.FileSystem(img.index.FileSystem)); err != nil {
		return t, err
	}
	// The kernel may have mounted another disk by now.
	if _, id, err := layerdisk.ReadMountedIndex(t.MountPoint); err != nil || id.Check(img.identity) != nil {
		return t, errors.Join(err, id.Check(img.identity))
	}
	return t, nil
}

// mountRoot mounts the container's root: the layers, and an upper directory for what it writes.
func (w *workplace) mountRoot(t recorder.Target) error {
	o := fsmount.Overlay{Upper: w.path(upperDir), Work: w.path(workDir)}
	for _, l := range t.Layers {
		o.Lower = append(o.Lower, filepath.Join(t.MountPoint, l.Path))
	}
	return fsmount.MountOverlay(o, w.path(rootDir))
}

// remove unmounts and deletes everything. The container has to be gone.
func (w *workplace) remove(ctx context.Context) error {
	for _, name := range []string{rootDir, diskDir} {
		if err := unmount(ctx, w.path(name)); err != nil {
			return errors.Join(err, w.lock.Close())
		}
	}
	return w.removeFiles()
}

// removeFiles deletes the directory of a workplace with nothing mounted in it.
func (w *workplace) removeFiles() error {
	mounts, err := fsmount.Below(w.dir)
	if err == nil && len(mounts) > 0 {
		err = fmt.Errorf("%s is still mounted: %w", mounts[0].Target, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = os.RemoveAll(w.dir)
	}
	return errors.Join(err, w.lock.Close())
}

// unmount waits while somebody looks at the mount, as those do who list mounts.
func unmount(ctx context.Context, target string) error {
	return retryBusy(ctx, func() error { return fsmount.Unmount(target) })
}
