package tree

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Layer is what the archive of one layer says, entry by entry, with the contents of its files written already. On makes
// trees of it. It does not change once Read returned it, so it may be used concurrently.
type Layer struct {
	// Blocks is the number of blocks that Read wrote, the size of the layer's data region.
	Blocks uint64
	// Bytes is the sum of the sizes of the regular files in the archive, holes included. Entries counts its entries.
	Bytes, Entries int64

	limits Limits
	// metadata is the length of all names and link targets.
	metadata int64
	entries  []entry
	sums     [][32]byte
	sparse   map[uint32][]Run // by index in sums
	xattrs   xattrTable
	// whiteouts says that the layer removes names.
	whiteouts bool
}

// entry is one entry of an archive, kept small, because a layer holds one per file.
type entry struct {
	name, link           string
	size                 int64
	mtimeSec             int64
	mtimeNsec            uint32
	uid, gid             uint32
	devMajor, devMinor   uint32
	first, sum           uint32 // of a regular file: its first block and its index in Layer.sums
	xattrs               uint32 // as the archive has them, in Layer.xattrs
	mode                 uint16 // permissions
	kind                 byte   // type of the archive
	sparse, deviceNumber bool   // has holes; device number is one that mknod(2) takes
}

// On makes the tree that containerd has in a layer's directory when it unpacks the layer on top of these trees, ordered
// from the top.
//
// With lower trees these are the rules of an overlay: a whiteout becomes a device 0:0, an opaque marker an attribute,
// and a directory that the layer only implies is made with the mode, the owner, the time and the attributes (but
// trusted.*) of the same directory in the topmost lower tree that has it (archive.WithParents). Without lower trees
// containerd unpacks into a plain directory: a whiteout removes what came before it in the same layer and leaves
// nothing, and neither does an opaque marker.
//
// What containerd refuses is an ErrInvalid. The result shares what its files hold with all trees of the layer.
func (l *Layer) On(lower []*Tree) (*Tree, error) {
	a := newApplier(l, lower)
	for i := range l.entries {
		if err := a.entry(&l.entries[i]); err != nil {
			return nil, fmt.Errorf("entry %d %q: %w", i+1, l.entries[i].name, err)
		}
	}
	if err := a.setDirTimes(); err != nil {
		return nil, err
	}
	t := a.space.tree
	t.stackBound = a.implied || l.whiteouts && len(lower) == 0
	t.inodes, t.xattrs = slices.Clone(t.inodes), slices.Clone(a.space.xattrs.table.sets) // without the room to grow
	t.finish()
	return t, nil
}

// Same says whether two trees of one Layer are equal.
func (t *Tree) Same(other *Tree) bool {
	if !t.SharesContents(other) || !slices.Equal(t.targets, other.targets) || len(t.inodes) != len(other.inodes) ||
		len(t.dirs) != len(other.dirs) {
		return false
	}
	for i := range t.dirs {
		if !slices.Equal(t.dirs[i].children, other.dirs[i].children) {
			return false
		}
	}
	for i := range t.inodes {
		a, b := t.inodes[i], other.inodes[i]
		if !slices.Equal(t.xattrs[a.xattrs], other.xattrs[b.xattrs]) {
			return false
		}
		a.xattrs, b.xattrs = 0, 0
		if a != b {
			return false
		}
	}
	return true
}

// SharesContents says whether the two are trees of one layer: what their files hold is in one data region.
func (t *Tree) SharesContents(other *Tree) bool {
	return t.Blocks == other.Blocks && len(t.sums) == len(other.sums) && (len(t.sums) == 0 || &t.sums[0] == &other.sums[0])
}

// Whiteouts says that the layer removes names, so that it looks different at the bottom of a stack.
func (l *Layer) Whiteouts() bool { return l.whiteouts }

// StackBound says that the layer may look different on another stack: it puts something into a directory that it has
// not mentioned before, or it removes names and is at the bottom. A layer that removes names and is not bound may still
// look different at the bottom.
func (t *Tree) StackBound() bool { return t.stackBound }

// newTree has nothing but a root.
func newTree() *Tree {
	return &Tree{
		sparse: make(map[Number][]Run), xattrs: [][]Xattr{nil},
		inodes: []inode{{mode: unix.S_IFDIR | 0o755}}, dirs: []directory{{}},
	}
}
