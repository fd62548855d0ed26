package tree

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"
)

// BlockSize is the unit, in bytes, in which file contents are laid out.
const BlockSize = 4096

// Number names an inode of a Tree. Numbers are indexes below Tree.Numbers; some may belong to inodes that a later entry
// of the layer replaced.
type Number uint32

// Root is the number of a tree's root directory.
const Root Number = 0

// none marks a name whose inode was removed while reading.
const none = ^Number(0)

// Tree is one unpacked layer. It does not change, so it may be used concurrently.
type Tree struct {
	// Blocks is the number of blocks that Read wrote, the size of the layer's data region.
	Blocks uint64
	// Inodes counts the inodes that are reachable, root included.
	Inodes int64
	// UnpackedBytes is the sum of the sizes of all regular files, hard links counted once, holes included.
	UnpackedBytes int64

	inodes  []inode
	dirs    []directory
	targets []string
	sums    [][32]byte
	sparse  map[Number][]Run
	xattrs  [][]Xattr
	// sorted says that directories are in the order of Children.
	sorted     bool
	stackBound bool
}

// inode is kept small, because a tree holds one per file. The meaning of data and aux depends on the type:
// a regular file has its first block and its index in sums, a directory its index in dirs, a symbolic link its index in
// targets, a device its major and minor number.
type inode struct {
	size      int64
	mtimeSec  int64
	mtimeNsec uint32
	uid, gid  uint32
	nlink     uint32
	data, aux uint32
	xattrs    uint32 // index in Tree.xattrs, 0 for none
	mode      uint16 // type and permissions as in st_mode
	flags     uint8
}

// flagSparse of an inode says that it has holes: see Tree.sparse.
const flagSparse = 1

func (n *inode) is(format uint16) bool { return n.mode&unix.S_IFMT == format }

type directory struct {
	children []Child
	index    map[string]int32 // position in children by name; only while reading and only for big directories
}

// Child is a name in a directory.
type Child struct {
	Name  string
	Inode Number
}

// Xattr is one extended attribute by its full name, such as security.capability. Value may hold any bytes.
type Xattr struct {
	Name, Value string
}

// Run is a stretch of a file that is stored: Blocks blocks from block FileBlock of the file, beginning at block
// FirstBlock of the data region. What no run covers is a hole, which reads as zeros.
type Run struct {
	FileBlock, FirstBlock, Blocks uint32
}

// Inode is a copy of everything known about one inode.
type Inode struct {
	// Mode is type and permissions as in st_mode.
	Mode     uint32
	UID, GID uint32
	// Nlink is the number of names, for a directory 2 plus the number of its subdirectories; 0 for an inode that a
	// later entry of the layer replaced.
	Nlink uint32
	// Size of a regular file or of a symbolic link's target in bytes.
	Size               int64
	MtimeSec           int64
	MtimeNsec          uint32
	DevMajor, DevMinor uint32
	Target             string
	// Xattrs are sorted by name. The slice is shared and must not be changed.
	Xattrs []Xattr
	// FirstBlock of a regular file without holes, relative to the data region.
	FirstBlock uint32
	// Sparse says that the file has holes; then Runs holds its stored stretches in ascending order.
	Sparse bool
	Runs   []Run
}

// Numbers is one more than the highest inode number.
func (t *Tree) Numbers() int { return len(t.inodes) }

// Inode returns inode n.
func (t *Tree) Inode(n Number) Inode {
	in := &t.inodes[n]
	out := Inode{
		Mode: uint32(in.mode), UID: in.uid, GID: in.gid, Nlink: in.nlink, Size: in.size,
		MtimeSec: in.mtimeSec, MtimeNsec: in.mtimeNsec, Xattrs: t.xattrs[in.xattrs],
	}
	switch in.mode & unix.S_IFMT {
	case unix.S_IFREG:
		out.FirstBlock = in.data
		if in.flags&flagSparse != 0 {
			out.Sparse, out.Runs = true, t.sparse[n]
		}
	case unix.S_IFLNK:
		out.Target = t.targets[in.data]
	case unix.S_IFCHR, unix.S_IFBLK:
		out.DevMajor, out.DevMinor = in.data, in.aux
	}
	return out
}

// Children returns the names in directory n sorted bytewise, without "." and ".."; nil if n is not a directory. The
// slice is shared and must not be changed.
func (t *Tree) Children(n Number) []Child {
	in := &t.inodes[n]
	if !in.is(unix.S_IFDIR) {
		return nil
	}
	return t.dirs[in.data].children
}

// finish drops what only reading needs, sorts the directories and counts.
func (t *Tree) finish() {
	for i := range t.dirs {
		d := &t.dirs[i]
		d.index = nil
		d.children = slices.DeleteFunc(d.children, func(c Child) bool { return c.Inode == none })
		slices.SortFunc(d.children, func(a, b Child) int { return cmp.Compare(a.Name, b.Name) })
		if cap(d.children) > len(d.children) {
			d.children = slices.Clone(d.children)
		}
	}
	t.sorted = true
	t.inodes[Root].nlink = 2
	t.Inodes = 1
	for todo := []Number{Root}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, c := range t.dirs[t.inodes[dir].data].children {
			in := &t.inodes[c.Inode]
			if in.is(unix.S_IFDIR) {
				in.nlink = 2
				t.inodes[dir].nlink++
				t.Inodes++
				todo = append(todo, c.Inode)
				continue
			}
			in.nlink++
			if in.nlink == 1 {
				t.Inodes++
				if in.is(unix.S_IFREG) {
					t.UnpackedBytes += in.size
				}
			}
		}
	}
}
