package tree

import (
	"cmp"
	"iter"
	"slices"

	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/attrs"
)

// Entries yields every name of the tree, sorted bytewise by path, in the form in which trees are compared. Path strings
// and attribute maps belong to the caller.
func (t *Tree) Entries() iter.Seq[attrs.Entry] {
	return func(yield func(attrs.Entry) bool) {
		first := make(map[Number]string)
		for path, n := range t.walk() {
			e := t.entry(n)
			e.Path = path
			if t.inodes[n].nlink > 1 && e.Type != attrs.Directory {
				if owner, ok := first[n]; ok {
					e.HardLink, e.Content = owner, [32]byte{}
				} else {
					first[n] = path
				}
			}
			if !yield(e) {
				return
			}
		}
	}
}

func (t *Tree) entry(n Number) attrs.Entry {
	in := t.Inode(n)
	e := attrs.Entry{
		Mode: in.Mode &^ unix.S_IFMT, UID: in.UID, GID: in.GID, Size: in.Size, MtimeSec: in.MtimeSec,
		MtimeNsec: in.MtimeNsec, Target: in.Target, DevMajor: in.DevMajor, DevMinor: in.DevMinor,
	}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Content = attrs.Regular, t.sums[t.inodes[n].aux]
	case unix.S_IFDIR:
		e.Type = attrs.Directory
	case unix.S_IFLNK:
		e.Type = attrs.Symlink
	case unix.S_IFCHR:
		e.Type = attrs.CharDev
	case unix.S_IFBLK:
		e.Type = attrs.BlockDev
	case unix.S_IFIFO:
		e.Type = attrs.FIFO
	}
	if len(in.Xattrs) > 0 {
		e.Xattrs = make(map[string][]byte, len(in.Xattrs))
		for _, x := range in.Xattrs {
			e.Xattrs[x.Name] = []byte(x.Value)
		}
	}
	return e
}

// step is one thing a walk meets in a directory: a name, or what lies below it. Below "a" everything begins with "a/",
// and "a-b" sorts between "a" and "a/", so a name and what lies below it have places of their own.
type step struct {
	key   string
	inode Number
	below bool
}

// walk yields every path, the root's "." included, in bytewise order.
func (t *Tree) walk() iter.Seq2[string, Number] {
	return func(yield func(string, Number) bool) {
		t.walkDir("", Root, yield)
	}
}

func (t *Tree) walkDir(prefix string, dir Number, yield func(string, Number) bool) bool {
	children := t.Children(dir)
	steps := make([]step, 0, len(children)+1)
	sorted := true
	for i, c := range children {
		steps = append(steps, step{key: c.Name, inode: c.Inode})
		if t.inodes[c.Inode].is(unix.S_IFDIR) {
			steps = append(steps, step{key: c.Name + "/", inode: c.Inode, below: true})
			sorted = sorted && (i+1 == len(children) || c.Name+"/" < children[i+1].Name)
		}
	}
	if dir == Root {
		steps, sorted = append(steps, step{key: ".", inode: Root}), false
	}
	if !sorted {
		slices.SortFunc(steps, func(a, b step) int { return cmp.Compare(a.key, b.key) })
	}
	for _, s := range steps {
		if s.below {
			if !t.walkDir(prefix+s.key, s.inode, yield) {
				return false
			}
			continue
		}
		if !yield(prefix+s.key, s.inode) {
			return false
		}
	}
	return true
}
