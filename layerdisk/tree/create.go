package tree

import (
	"archive/tar"
	"context"
	"io"
	"math"
	"path"

	"golang.org/x/sys/unix"
)

// create makes the inode of an entry, or finds the one that a hard link names; an existing directory is kept.
func (r *reader) create(ctx context.Context, parent, existing Number, hdr *tar.Header, content io.Reader) (Number, error) {
	switch hdr.Typeflag {
	case tar.TypeDir:
		if existing != none {
			r.t.inodes[existing].flags &^= flagImplied
			return existing, nil
		}
		return r.add(parent, unix.S_IFDIR), nil
	case tar.TypeReg:
		n := r.add(parent, unix.S_IFREG)
		c, err := r.out.file(ctx, fileReader{content, &r.src}, hdr.Size)
		if err != nil {
			return none, err
		}
		in := &r.t.inodes[n]
		in.size, in.data, in.aux = hdr.Size, c.first, c.sum
		if c.sparse {
			in.flags |= flagSparse
			r.t.sparse[n] = c.runs
		}
		return n, nil
	case tar.TypeBlock:
		return r.special(parent, unix.S_IFBLK, hdr)
	case tar.TypeChar:
		return r.special(parent, unix.S_IFCHR, hdr)
	case tar.TypeFifo:
		return r.special(parent, unix.S_IFIFO, hdr)
	case tar.TypeSymlink:
		return r.symlink(parent, hdr.Linkname)
	case tar.TypeLink:
		return r.linkTarget(hdr.Linkname)
	default:
		return none, invalid("containerd knows no entry of type %q", hdr.Typeflag)
	}
}

// special makes a device or FIFO. Linux keeps 12 bits of a major and 20 of a minor number; containerd lets mknod(2) cut
// off the rest and refuses only what has more than 32.
func (r *reader) special(parent Number, format uint16, hdr *tar.Header) (Number, error) {
	if hdr.Devmajor < 0 || hdr.Devmajor > math.MaxUint32 || hdr.Devminor < 0 || hdr.Devminor > math.MaxUint32 {
		return none, invalid("device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
	}
	n := r.add(parent, format)
	if format != unix.S_IFIFO {
		r.t.inodes[n].data, r.t.inodes[n].aux = uint32(hdr.Devmajor)&0xfff, uint32(hdr.Devminor)&0xfffff
	}
	return n, nil
}

func (r *reader) symlink(parent Number, target string) (Number, error) {
	if target == "" || len(target) > maxTarget {
		return none, invalid("symbolic link with a target of %d bytes, Linux has 1 to %d", len(target), maxTarget)
	}
	n := r.add(parent, unix.S_IFLNK)
	in := &r.t.inodes[n]
	in.mode |= 0o777
	in.size, in.data = int64(len(target)), uint32(len(r.t.targets))
	r.t.targets = append(r.t.targets, r.names.keep(target))
	r.hasLinks = true
	return n, nil
}

// linkTarget finds what a hard link names: parents are resolved, a symbolic link at the end is itself the target.
func (r *reader) linkTarget(name string) (Number, error) {
	dir, base := path.Split(name)
	resolved, err := r.resolve(dir)
	if err != nil {
		return none, err
	}
	n, err := r.lstat(path.Join(resolved, base))
	if err != nil {
		return none, err
	}
	if n == none {
		return none, invalid("hard link to %q, which does not exist at this point of the layer", name)
	}
	if r.t.inodes[n].is(unix.S_IFDIR) {
		return none, invalid("hard link to directory %q", name)
	}
	return n, nil
}

// fileReader fills whole buffers from one file of the archive.
type fileReader struct {
	io.Reader
	src *source
}

// fill reads len(p) bytes.
func (f fileReader) fill(p []byte) error {
	if _, err := io.ReadFull(f.Reader, p); err != nil {
		return f.src.class(err)
	}
	return nil
}
