package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
)

// lowers are the layers below a snapshot, the highest first.
type lowers struct {
	top node // the highest; its zero value if there are none
	// overlay has the directories that the wrapped snapshotter names, real those that have the content.
	overlay, real []string
	adopted       bool // at least one is
}

// stacks finds the directories of snapshots and of all below them.
type stacks struct {
	root   string
	rows   rows
	source LayerSource
	holds  *holds
	step   func(string)
}

// upperDir is where the wrapped snapshotter keeps a snapshot's own files.
func (s *stacks) upperDir(id string) string {
	return filepath.Join(s.root, "snapshots", id, "fs")
}

// below finds the directories of parent and all below it.
func (s *stacks) below(ctx context.Context, parent string) (lowers, error) {
	nodes, err := s.rows.lineage(ctx, parent)
	if err != nil || len(nodes) == 0 {
		return lowers{}, err
	}
	l := lowers{top: nodes[0], overlay: make([]string, len(nodes)), real: make([]string, len(nodes))}
	for i, n := range nodes {
		l.overlay[i] = s.upperDir(n.id)
		l.real[i] = l.overlay[i]
		if n.adopted == nil {
			continue
		}
		l.adopted = true
		if l.real[i], err = s.layerDir(ctx, n); err != nil {
			return lowers{}, fmt.Errorf("find layer of snapshot %s: %w", n.info.Name, err)
		}
	}
	return l, nil
}

// rewrite puts the layers' real directories into mounts made by the wrapped snapshotter. It insists on the exact form
// it knows: a container must not start without its layers because another version of containerd writes mounts
// differently.
func (l lowers) rewrite(mounts []mount.Mount) ([]mount.Mount, error) {
	if !l.adopted {
		return mounts, nil
	}
	if len(mounts) != 1 {
		return nil, fmt.Errorf("overlay snapshotter gave %d mounts where one was expected: %w", len(mounts), errdefs.ErrInternal)
	}
	m := mounts[0]
	m.Options = slices.Clone(m.Options)
	if m.Type == "bind" && len(l.overlay) == 1 && m.Source == l.overlay[0] {
		m.Source = l.real[0]
		return []mount.Mount{m}, nil
	}
	at := slices.Index(m.Options, "lowerdir="+strings.Join(l.overlay, ":"))
	if m.Type != "overlay" || at < 0 {
		return nil, fmt.Errorf("overlay snapshotter gave a %s mount that does not name the parents' directories: %w", m.Type, errdefs.ErrInternal)
	}
	dirs := topmost(l.real)
	if view := !slices.ContainsFunc(m.Options, isUpper); view && len(dirs) == 1 {
		return []mount.Mount{viewOf(dirs[0], m)}, nil // an overlay without an upper directory has two lower ones or more
	}
	m.Options[at] = "lowerdir=" + strings.Join(dirs, ":")
	if !slices.Contains(m.Options, oneDevice) {
		m.Options = append(m.Options, oneDevice)
	}
	return []mount.Mount{m}, nil
}

// oneDevice has the kernel give all files of an overlay mount the device number of the mount. Without it files on layer
// disks have another one than directories, and programs that stay on one file system (du -x, find -xdev) leave them
// out. The number of the file system goes into the highest bits of inode numbers instead
// (Documentation/filesystems/overlayfs.rst, inode properties).
const oneDevice = "xino=on"

// topmost leaves of equal directories the highest. An image may have a layer twice, which a disk has once, and
// overlayfs refuses a directory that is named twice (ELOOP). Everything that the lower one says, the higher one says
// again.
func topmost(dirs []string) []string {
	seen := make(map[string]bool, len(dirs))
	return slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool {
		again := seen[dir]
		seen[dir] = true
		return again
	})
}

func isUpper(option string) bool { return strings.HasPrefix(option, "upperdir=") }

// viewOf is the mount that the wrapped snapshotter makes of a view of one layer.
func viewOf(dir string, like mount.Mount) mount.Mount {
	m := mount.Mount{Type: "bind", Source: dir, Options: []string{"ro", "rbind"}}
	for _, o := range like.Options {
		if strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=") {
			m.Options = append(m.Options, o)
		}
	}
	return m
}

// giveForm makes the empty directory that the wrapped snapshotter wants to see of a parent: a new snapshot's root gets
// the owner of its parent's root. It is made when it is first needed and not when a layer is adopted, which then is one
// transaction and nothing else.
func (s *stacks) giveForm(ctx context.Context, below lowers) error {
	if below.top.adopted == nil {
		return nil
	}
	upper := s.upperDir(below.top.id)
	if _, err := os.Lstat(upper); err == nil {
		return nil
	}
	info, err := lookAt(ctx, below.real[0])
	if err != nil && ctx.Err() == nil {
		// The disk has failed since the source was asked. The source notices when it is asked for the layer again.
		if below.real[0], err = s.move(ctx, below.top, err); err == nil {
			info, err = lookAt(ctx, below.real[0])
		}
	}
	if err != nil {
		return fmt.Errorf("read layer %d of disk %s, see berth status: %w: %w",
			below.top.adopted.LayerNumber, below.top.adopted.DiskUUID, errdefs.ErrUnavailable, err)
	}
	// Cleanup looks for directories without a row while it locks out writers, so the lock keeps it from taking this
	// one.
	return s.rows.exclusive(ctx, func(ctx context.Context) error {
		if n, err := lookup(ctx, below.top.info.Name); err != nil || n.id != below.top.id {
			return err // removed meanwhile: the wrapped snapshotter will say so
		}
		return makeForm(filepath.Dir(upper), info)
	})
}

// makeForm makes dir/fs with the owner of like, all at once.
func makeForm(dir string, like fs.FileInfo) (err error) {
	temp, err := os.MkdirTemp(filepath.Dir(dir), "new-")
	if err != nil {
		return fmt.Errorf("create snapshot directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	upper := filepath.Join(temp, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return fmt.Errorf("create snapshot directory: %w", err)
	}
	if err := chownLike(upper, like); err != nil {
		return err
	}
	err = os.Rename(temp, dir)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return os.RemoveAll(temp) // another Prepare was faster
	}
	if err != nil {
		return fmt.Errorf("put snapshot directory in place: %w", err)
	}
	return nil
}

// chownLike gives path the owner of another file.
func chownLike(path string, like fs.FileInfo) error {
	st, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("owner of %s is unknown: %w", like.Name(), errdefs.ErrInternal)
	}
	if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("set owner of snapshot directory: %w", err)
	}
	return nil
}

// setAsidePrefix begins the names of directories that belong to no snapshot and wait for Cleanup.
const setAsidePrefix = "stale-"

// setAside renames all in dir that has no row in the store, which is quick however much there is in it.
func setAside(dir string, ids map[string]string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list snapshot directories: %w", err)
	}
	for _, e := range entries {
		if _, known := ids[e.Name()]; known || strings.HasPrefix(e.Name(), setAsidePrefix) {
			continue
		}
		if err := os.Rename(filepath.Join(dir, e.Name()), filepath.Join(dir, setAsidePrefix+uuid.NewString())); err != nil {
			return fmt.Errorf("set leftover directory aside: %w", err)
		}
	}
	return nil
}

// unpackForm turns the mounts of an extraction snapshot into what its labels promise.
//
// One that is prepared without its parent gets an overlay mount that has only an upper directory, although nobody could
// mount that: the applier writes into the upper directory itself, and turns whiteouts into those of overlay. Given the
// bind mount that the wrapped snapshotter has, it would carry out the whiteouts on the layer's own files
// (containerd issue 13030; the work-around there knows only the name "overlayfs").
//
// One with early mounts says "ro" before that. containerd from 2.4 on then neither fetches nor applies; earlier
// versions do not look, and apply into the upper directory as they would have without us.
func unpackForm(mounts []mount.Mount, labels map[string]string) ([]mount.Mount, error) {
	r, err := recordOf(labels)
	if err != nil {
		return nil, err
	}
	early := r != nil
	if _, apart := labels[labelApart]; !apart && !early {
		return mounts, nil
	}
	if len(mounts) != 1 {
		return nil, fmt.Errorf("overlay snapshotter gave %d mounts where one was expected: %w", len(mounts), errdefs.ErrInternal)
	}
	m := mounts[0]
	if m.Type == "bind" {
		m = mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"upperdir=" + m.Source}}
	}
	if early {
		m.Options = append([]string{"ro"}, m.Options...)
	}
	return []mount.Mount{m}, nil
}
