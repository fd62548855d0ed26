package tree

import (
	"strings"

	"golang.org/x/sys/unix"
)

// indexFrom is the number of names from which a directory gets a map while reading; below it a scan is as fast.
const indexFrom = 24

// position finds name in directory dir, -1 if it is not there.
func (t *Tree) position(dir Number, name string) int {
	d := &t.dirs[t.inodes[dir].data]
	if d.index != nil {
		if i, ok := d.index[name]; ok {
			return int(i)
		}
		return -1
	}
	for i := len(d.children) - 1; i >= 0; i-- {
		if d.children[i].Name == name {
			return i
		}
	}
	return -1
}

// lookup returns the inode called name in directory dir, or none.
func (t *Tree) lookup(dir Number, name string) Number {
	if i := t.position(dir, name); i >= 0 {
		return t.dirs[t.inodes[dir].data].children[i].Inode
	}
	return none
}

// set makes name in directory dir mean inode n; none removes it. What it meant before is gone from the tree, and with
// it all that was below.
func (r *reader) set(dir Number, name string, n Number) {
	d := &r.t.dirs[r.t.inodes[dir].data]
	if i := r.t.position(dir, name); i >= 0 {
		if d.children[i].Inode != none {
			r.parentPath = "" // might have led through here
		}
		d.children[i].Inode = n
		return
	}
	if n == none {
		return
	}
	name = r.names.keep(name)
	d.children = append(d.children, Child{Name: name, Inode: n})
	if d.index == nil && len(d.children) >= indexFrom {
		d.index = make(map[string]int32, 2*indexFrom)
		for i, c := range d.children {
			d.index[c.Name] = int32(i)
		}
	} else if d.index != nil {
		d.index[name] = int32(len(d.children) - 1)
	}
}

// add makes a new inode as the kernel would in directory parent: a set-group-ID directory passes on its group, a
// default ACL its entries.
func (r *reader) add(parent Number, mode uint16) Number {
	t := r.t
	n := Number(len(t.inodes))
	in := inode{mode: mode}
	p := &t.inodes[parent]
	if p.mode&unix.S_ISGID != 0 {
		in.gid = p.gid
	}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		in.data = uint32(len(t.dirs))
		t.dirs = append(t.dirs, directory{})
	}
	t.inodes = append(t.inodes, in)
	r.inheritACL(parent, n)
	return n
}

// arena keeps many short strings in few allocations.
type arena struct {
	chunk strings.Builder
}

const arenaChunk = 64 << 10

// keep returns a copy of s that does not hold on to the string that s is part of.
func (a *arena) keep(s string) string {
	if len(s) > arenaChunk/8 {
		return strings.Clone(s)
	}
	if a.chunk.Cap()-a.chunk.Len() < len(s) {
		a.chunk = strings.Builder{}
		a.chunk.Grow(arenaChunk)
	}
	start := a.chunk.Len()
	a.chunk.WriteString(s)
	return a.chunk.String()[start:]
}
