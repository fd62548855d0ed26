package tree

import (
	"cmp"
	"slices"
	"strings"
)

// indexFrom is the number of names from which a directory gets a map while reading; below it a scan is as fast.
const indexFrom = 24

// position finds name in directory dir, -1 if it is not there.
func (t *Tree) position(dir Number, name string) int {
	d := &t.dirs[t.inodes[dir].data]
	if t.sorted {
		i, ok := slices.BinarySearchFunc(d.children, name, func(c Child, name string) int { return cmp.Compare(c.Name, name) })
		if !ok {
			return -1
		}
		return i
	}
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

// add appends a name.
func (d *directory) add(name string, n Number) {
	d.children = append(d.children, Child{Name: name, Inode: n})
	if d.index == nil && len(d.children) >= indexFrom {
		d.index = make(map[string]int32, 2*indexFrom)
		for i, c := range d.children {
			d.index[c.Name] = int32(i) //nolint:gosec // fewer than inodes
		}
	} else if d.index != nil {
		d.index[name] = int32(len(d.children) - 1) //nolint:gosec // fewer than inodes
	}
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
