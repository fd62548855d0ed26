package tree

import (
	"math"

	"golang.org/x/sys/unix"
)

// space is a tree that grows, with what the kernel does to its inodes.
type space struct {
	tree   *Tree
	limits Limits
	// entries and the length of their names, and of all extended attributes that were set.
	entries, metadata int64
	names             *arena
	xattrs            xattrs
}

func newSpace(t *Tree, l *Layer) *space {
	s := &space{tree: t, limits: l.limits, entries: l.Entries, metadata: l.metadata, names: &arena{}}
	s.xattrs = xattrs{space: s, table: newXattrTable(s.names)}
	return s
}

// count charges an implied directory whose name has the given length.
func (s *space) count(name int) error {
	if s.entries++; s.entries > s.limits.MaxEntries {
		return overLimit("entries", s.limits.MaxEntries)
	}
	return s.charge(name)
}

// charge counts bytes of metadata.
func (s *space) charge(bytes int) error {
	if s.metadata += int64(bytes); s.metadata > s.limits.MaxMetadataBytes {
		return overLimit("bytes of names and attributes", s.limits.MaxMetadataBytes)
	}
	return nil
}

// add makes a new inode as the kernel would in directory parent: a set-group-ID directory passes on its group, a
// default ACL its entries.
func (s *space) add(parent Number, mode uint16) Number {
	t := s.tree
	n := Number(len(t.inodes)) //nolint:gosec // bounded by the limits
	in := inode{mode: mode}
	p := &t.inodes[parent]
	if p.mode&unix.S_ISGID != 0 {
		in.gid = p.gid
	}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		in.data = uint32(len(t.dirs)) //nolint:gosec // fewer than inodes
		t.dirs = append(t.dirs, directory{})
	}
	t.inodes = append(t.inodes, in)
	s.xattrs.inheritACL(parent, n)
	return n
}

// set makes name in directory dir mean inode n; none removes it. What it meant before is gone from the tree, and with
// it all that was below; replaced says that there was something. The directory's time becomes the clock's, which is 0.
func (s *space) set(dir Number, name string, n Number) (replaced bool) {
	d := &s.tree.dirs[s.tree.inodes[dir].data]
	if i := s.tree.position(dir, name); i >= 0 {
		replaced = d.children[i].Inode != none
		if replaced || n != none {
			s.touch(dir)
		}
		d.children[i].Inode = n
		return replaced
	}
	if n == none {
		return false
	}
	s.touch(dir)
	d.add(s.names.keep(name), n)
	return false
}

func (s *space) touch(dir Number) {
	in := &s.tree.inodes[dir]
	in.mtimeSec, in.mtimeNsec = 0, 0
}

// attributes does what containerd does to every entry in its order: owner, extended attributes (given), permissions,
// time.
func (s *space) attributes(n Number, e *entry, given []Xattr) error {
	s.chown(n, e)
	if err := s.xattrs.fromArchive(n, given); err != nil {
		return err
	}
	if !s.tree.inodes[n].is(unix.S_IFLNK) {
		s.chmod(n, e.mode)
	}
	s.tree.inodes[n].mtimeSec, s.tree.inodes[n].mtimeNsec = e.mtimeSec, e.mtimeNsec
	return nil
}

// copyAttributes does what containerd does to a directory that it makes like one below.
func (s *space) copyAttributes(n Number, from *inode, set []Xattr) error {
	in := &s.tree.inodes[n]
	in.uid, in.gid = from.uid, from.gid
	s.chmod(n, from.mode&0o7777)
	in.mtimeSec, in.mtimeNsec = from.mtimeSec, from.mtimeNsec
	return s.xattrs.copied(n, set)
}

// chown sets the owner as chown(2) does: the numbers have 32 bits, the highest of them means "leave it", and a file
// that is no directory loses its capabilities.
func (s *space) chown(n Number, e *entry) {
	in := &s.tree.inodes[n]
	if e.uid != math.MaxUint32 {
		in.uid = e.uid
	}
	if e.gid != math.MaxUint32 {
		in.gid = e.gid
	}
	if !in.is(unix.S_IFDIR) && in.xattrs != 0 {
		s.xattrs.remove(n, xattrCapability)
	}
}

func (s *space) chmod(n Number, perm uint16) {
	in := &s.tree.inodes[n]
	in.mode = in.mode&unix.S_IFMT | perm
	s.xattrs.maskACL(n, perm)
}
