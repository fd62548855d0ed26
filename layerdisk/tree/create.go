package tree

import (
	"archive/tar"
	"path"

	"golang.org/x/sys/unix"
)

// create makes the inode of an entry, or finds the one that a hard link names; an existing directory is kept.
func (a *applier) create(parent, existing Number, e *entry) (Number, error) {
	s := a.space
	switch e.kind {
	case tar.TypeDir:
		if existing != none {
			return existing, nil
		}
		return s.add(parent, unix.S_IFDIR), nil
	case tar.TypeReg:
		n := s.add(parent, unix.S_IFREG)
		in := &s.tree.inodes[n]
		in.size, in.data, in.aux = e.size, e.first, e.sum
		if e.sparse {
			in.flags |= flagSparse
			s.tree.sparse[n] = a.layer.sparse[e.sum]
		}
		return n, nil
	case tar.TypeBlock:
		return a.special(parent, unix.S_IFBLK, e)
	case tar.TypeChar:
		return a.special(parent, unix.S_IFCHR, e)
	case tar.TypeFifo:
		return a.special(parent, unix.S_IFIFO, e)
	case tar.TypeSymlink:
		return a.symlink(parent, e.link)
	case tar.TypeLink:
		return a.linkTarget(e.link)
	default:
		return none, invalid("containerd knows no entry of type %q", e.kind)
	}
}

// special makes a device or FIFO.
func (a *applier) special(parent Number, format uint16, e *entry) (Number, error) {
	if !e.deviceNumber {
		return none, invalid("device number is out of range")
	}
	n := a.space.add(parent, format)
	if format != unix.S_IFIFO {
		a.space.tree.inodes[n].data, a.space.tree.inodes[n].aux = e.devMajor, e.devMinor
	}
	return n, nil
}

func (a *applier) symlink(parent Number, target string) (Number, error) {
	if target == "" || len(target) > maxTarget {
		return none, invalid("symbolic link with a target of %d bytes, Linux has 1 to %d", len(target), maxTarget)
	}
	t := a.space.tree
	n := a.space.add(parent, unix.S_IFLNK)
	in := &t.inodes[n]
	in.mode |= 0o777
	in.size, in.data = int64(len(target)), uint32(len(t.targets)) //nolint:gosec // fewer than inodes
	t.targets = append(t.targets, target)
	a.paths.hasLinks = true
	return n, nil
}

// linkTarget finds what a hard link names: parents are resolved, a symbolic link at the end is itself the target.
func (a *applier) linkTarget(name string) (Number, error) {
	dir, base := path.Split(name)
	resolved, err := a.paths.resolve(dir)
	if err != nil {
		return none, err
	}
	n, err := a.paths.lstat(path.Join(resolved, base))
	if err != nil {
		return none, err
	}
	if n == none {
		return none, invalid("hard link to %q, which does not exist at this point of the layer", name)
	}
	if a.space.tree.inodes[n].is(unix.S_IFDIR) {
		return none, invalid("hard link to directory %q", name)
	}
	return n, nil
}
