package tree

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/attrs"
)

// ErrRestore is the class of listings and places that do not fit together; it is an errdefs.ErrDataLoss.
var ErrRestore = fmt.Errorf("layer cannot be restored: %w", errdefs.ErrDataLoss)

// ErrLooks says that two trees of one layer do not have the same files, so that they cannot be restored to share them.
var ErrLooks = errors.New("two trees of a layer differ in what files hold")

// Stored holds the facts about a file that a listing does not contain.
type Stored struct {
	// FirstBlock of the contents, or with Sparse Runs of them, as in Inode but from the beginning of the disk.
	FirstBlock uint32
	Sparse     bool
	Runs       []Run
	// Xattrs of the file; only the unlisted ones are used, see attrs.Listed.
	Xattrs []Xattr
}

// Restore makes a layer's tree again from its complete listing, for a disk that has the contents of its files. stored
// tells where they are, by path, and is asked for every entry. It returns the first block of the data region that the
// contents lie in.
//
// stackBound is what the tree said when it was made. If other is not nil, it is another tree of the same layer and
// shares what its files hold; ErrLooks if the two do not have the same files.
func Restore(listing []attrs.Entry, stored func(path string) (Stored, bool), stackBound bool, other *Tree) (_ *Tree, first uint32, _ error) {
	r := &restorer{
		t: newTree(), paths: map[string]Number{".": Root}, first: math.MaxUint32,
	}
	r.t.stackBound = stackBound
	for i := range listing {
		e := &listing[i]
		s, ok := stored(e.Path)
		if !ok {
			return nil, 0, fmt.Errorf("%q is in the listing alone: %w", e.Path, ErrRestore)
		}
		if err := r.entry(e, s); err != nil {
			return nil, 0, fmt.Errorf("%q: %w", e.Path, err)
		}
	}
	if r.end == 0 {
		r.first = 0
	}
	r.move()
	r.t.Blocks = uint64(r.end - r.first)
	r.t.finish()
	if other != nil {
		if !slices.Equal(other.sums, r.t.sums) || other.Blocks != r.t.Blocks {
			return nil, 0, ErrLooks
		}
		r.t.sums = other.sums
	}
	return r.t, r.first, nil
}

type restorer struct {
	t     *Tree
	paths map[string]Number
	// first and end bound the blocks that the contents lie in.
	first, end uint32
}

func (r *restorer) entry(e *attrs.Entry, s Stored) error {
	t := r.t
	if e.HardLink != "" {
		n, ok := r.paths[e.HardLink]
		if !ok || t.inodes[n].is(unix.S_IFDIR) {
			return fmt.Errorf("hard link to %q: %w", e.HardLink, ErrRestore)
		}
		return r.name(e.Path, n)
	}
	n := Root
	if e.Path != "." {
		n = Number(len(t.inodes)) //nolint:gosec // as many as entries
		t.inodes = append(t.inodes, inode{})
		if err := r.name(e.Path, n); err != nil {
			return err
		}
	}
	in := &t.inodes[n]
	in.size, in.mtimeSec, in.mtimeNsec = e.Size, e.MtimeSec, e.MtimeNsec
	in.uid, in.gid = e.UID, e.GID
	format, err := r.kind(e, n, s)
	if err != nil {
		return err
	}
	if n == Root && format != unix.S_IFDIR {
		return fmt.Errorf("root is no directory: %w", ErrRestore)
	}
	in.mode = format | uint16(e.Mode) //nolint:gosec // twelve bits
	var xattrs []Xattr
	for name, value := range e.Xattrs {
		if attrs.Listed(name) {
			xattrs = append(xattrs, Xattr{Name: name, Value: string(value)})
		}
	}
	for _, x := range s.Xattrs {
		if !attrs.Listed(x.Name) {
			xattrs = append(xattrs, x)
		}
	}
	if len(xattrs) > 0 {
		slices.SortFunc(xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
		in.xattrs = uint32(len(t.xattrs)) //nolint:gosec // fewer than inodes
		t.xattrs = append(t.xattrs, xattrs)
	}
	return nil
}

// name puts an inode where its path says. A listing has directories before what is in them.
func (r *restorer) name(p string, n Number) error {
	dir, base := path.Split(p)
	parent, ok := r.paths[path.Clean(dir)]
	if !ok || !r.t.inodes[parent].is(unix.S_IFDIR) {
		return fmt.Errorf("directory is not in the listing: %w", ErrRestore)
	}
	r.paths[p] = n
	d := &r.t.dirs[r.t.inodes[parent].data]
	d.children = append(d.children, Child{Name: base, Inode: n})
	return nil
}

// kind fills in what depends on the type.
func (r *restorer) kind(e *attrs.Entry, n Number, s Stored) (format uint16, err error) {
	t := r.t
	in := &t.inodes[n]
	switch e.Type { //nolint:exhaustive // layers have no sockets
	case attrs.Regular:
		in.aux = uint32(len(t.sums)) //nolint:gosec // fewer than inodes
		t.sums = append(t.sums, e.Content)
		return unix.S_IFREG, r.contents(in, n, s)
	case attrs.Directory:
		if n != Root {
			in.data = uint32(len(t.dirs)) //nolint:gosec // fewer than inodes
			t.dirs = append(t.dirs, directory{})
		}
		return unix.S_IFDIR, nil
	case attrs.Symlink:
		in.data = uint32(len(t.targets)) //nolint:gosec // fewer than inodes
		t.targets = append(t.targets, e.Target)
		return unix.S_IFLNK, nil
	case attrs.CharDev, attrs.BlockDev:
		in.data, in.aux = e.DevMajor, e.DevMinor
		if e.Type == attrs.BlockDev {
			return unix.S_IFBLK, nil
		}
		return unix.S_IFCHR, nil
	case attrs.FIFO:
		return unix.S_IFIFO, nil
	}
	return 0, fmt.Errorf("type %q: %w", string(e.Type), ErrRestore)
}

func (r *restorer) contents(in *inode, n Number, s Stored) error {
	total := uint64(in.size+BlockSize-1) / BlockSize //nolint:gosec // a listing has no negative size
	if !s.Sparse {
		if total == 0 {
			return nil
		}
		in.data = s.FirstBlock
		return r.blocks(s.FirstBlock, total)
	}
	in.flags |= flagSparse
	next := uint64(0)
	for _, run := range s.Runs {
		if uint64(run.FileBlock) < next || uint64(run.FileBlock)+uint64(run.Blocks) > total {
			return fmt.Errorf("its stretches are not within it: %w", ErrRestore)
		}
		next = uint64(run.FileBlock) + uint64(run.Blocks)
		if err := r.blocks(run.FirstBlock, uint64(run.Blocks)); err != nil {
			return err
		}
	}
	r.t.sparse[n] = slices.Clone(s.Runs)
	return nil
}

func (r *restorer) blocks(first uint32, count uint64) error {
	end := uint64(first) + count
	if first == 0 || end > math.MaxUint32 {
		return fmt.Errorf("contents at block %d: %w", first, ErrRestore)
	}
	r.first, r.end = min(r.first, first), max(r.end, uint32(end))
	return nil
}

// move makes blocks relative to the data region.
func (r *restorer) move() {
	t := r.t
	for n := range t.inodes {
		in := &t.inodes[n]
		if !in.is(unix.S_IFREG) {
			continue
		}
		if in.flags&flagSparse != 0 {
			runs := t.sparse[Number(n)]
			for i := range runs {
				runs[i].FirstBlock -= r.first
			}
			if len(runs) > 0 {
				in.data = runs[0].FirstBlock
			}
		} else if in.size > 0 {
			in.data -= r.first
		}
	}
}
