package tree

import (
	"cmp"
	"iter"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dirAttributes are what an implied directory has from below.
type dirAttributes struct {
	mode     uint16
	uid, gid uint32
	xattrs   []Xattr
}

// StackBound says that the tree depends on what it is stacked on: it has implied directories.
func (t *Tree) StackBound() bool {
	if t.restoredBound {
		return true
	}
	for n := range t.inodes {
		in := &t.inodes[n]
		if Number(n) != Root && in.nlink > 0 && in.flags&flagImplied != 0 {
			return true
		}
	}
	return false
}

// On is the tree as it is on top of the trees of lower, ordered from the top: implied directories have the mode, the
// owner and the extended attributes (but trusted.*) of the same directory in the topmost lower tree that has it.
// containerd does the same when it unpacks onto its own snapshots (archive.WithParents), and without it a layer that
// names only tmp/x would take the sticky bit from /tmp. The trees of lower must be on their own lower ones already. The
// result shares everything else with t, and is t if that is not StackBound.
func (t *Tree) On(lower []*Tree) *Tree {
	if !t.StackBound() || t.restoredBound {
		return t
	}
	on := *t
	on.inodes, on.xattrs = slices.Clone(t.inodes), slices.Clone(t.xattrs)
	for _, dir := range on.inherited(lower) { // of on, since a directory's group may come from the one above
		in := &on.inodes[dir.number]
		in.mode, in.uid, in.gid, in.xattrs = dir.mode, dir.uid, dir.gid, 0
		if len(dir.xattrs) > 0 {
			in.xattrs = uint32(len(on.xattrs)) //nolint:gosec // far fewer than inodes
			on.xattrs = append(on.xattrs, dir.xattrs)
		}
	}
	return &on
}

// SharesContents says whether the two are the same tree or looks of the same one: what their files hold is in one data
// region.
func (t *Tree) SharesContents(other *Tree) bool {
	return t.Blocks == other.Blocks && len(t.sums) == len(other.sums) && (len(t.sums) == 0 || &t.sums[0] == &other.sums[0])
}

// Fits says whether t, made by On, is what On would make of it on top of these lower trees.
func (t *Tree) Fits(lower []*Tree) bool {
	for _, dir := range t.inherited(lower) {
		in := &t.inodes[dir.number]
		if in.mode != dir.mode || in.uid != dir.uid || in.gid != dir.gid || !slices.Equal(t.xattrs[in.xattrs], dir.xattrs) {
			return false
		}
	}
	return true
}

type inheritedDir struct {
	dirAttributes
	number Number
}

// inherited yields the implied directories with what they get from the lower trees.
func (t *Tree) inherited(lower []*Tree) iter.Seq2[string, inheritedDir] {
	return func(yield func(string, inheritedDir) bool) {
		if !t.StackBound() {
			return
		}
		readers := make([]*reader, len(lower))
		for i, l := range lower {
			readers[i] = &reader{t: l, hasLinks: true}
		}
		for path, n := range t.walk() {
			if n == Root || t.inodes[n].flags&flagImplied == 0 {
				continue
			}
			dir := inheritedDir{number: n, dirAttributes: below(path, readers, t.groupAbove(path))}
			// The directory may be opaque in its own layer, which is not the lower one's affair.
			for _, x := range t.xattrs[t.inodes[n].xattrs] {
				if strings.HasPrefix(x.Name, "trusted.") {
					dir.xattrs = append(dir.xattrs, x)
				}
			}
			slices.SortFunc(dir.xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
			if !yield(path, dir) {
				return
			}
		}
	}
}

// groupAbove is the group that a new directory gets from the directory it is made in.
func (t *Tree) groupAbove(name string) uint32 {
	r := &reader{t: t, hasLinks: true}
	n, found := r.find(path.Dir(name))
	if !found || t.inodes[n].mode&unix.S_ISGID == 0 {
		return 0
	}
	return t.inodes[n].gid
}

// below are the attributes of the topmost directory called path, or those of a new one in this group.
func below(path string, lower []*reader, group uint32) dirAttributes {
	attributes := dirAttributes{mode: unix.S_IFDIR | 0o755, gid: group}
	for _, r := range lower {
		n, found := r.find(path)
		if !found {
			continue
		}
		in := &r.t.inodes[n]
		if !in.is(unix.S_IFDIR) {
			break // hides the directory
		}
		attributes.mode, attributes.uid, attributes.gid = in.mode, in.uid, in.gid
		for _, x := range r.t.xattrs[in.xattrs] {
			if !strings.HasPrefix(x.Name, "trusted.") {
				attributes.xattrs = append(attributes.xattrs, x)
			}
		}
		break
	}
	return attributes
}

// find looks a path up as containerd does, links inside the tree included. What cannot be followed is not there.
func (r *reader) find(path string) (Number, bool) {
	resolved, err := r.resolve("/" + path)
	if err != nil {
		return none, false
	}
	n, err := r.lstat(resolved)
	return n, err == nil && n != none
}
