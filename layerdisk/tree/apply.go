package tree

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	opaqueXattr    = trustedPrefix + "overlay.opaque"
)

// applier does with the entries of one layer what containerd does.
type applier struct {
	layer *Layer
	space *space
	paths paths
	// lower are the trees below, from the top; empty at the bottom of a stack.
	lower []paths

	// parentPath is the directory part of the last entry's name, "" if not known; parent is the inode it led to and
	// resolved the path to that.
	parentPath string
	parent     Number
	resolved   string
	dirTimes   []*entry
	// implied says that a directory was made because something below it was named.
	implied bool
	// unpacked are the paths that an entry has made, and opaque the directories that had a marker; only at the bottom.
	unpacked, opaque map[string]bool
}

func newApplier(l *Layer, lower []*Tree) *applier {
	t := newTree()
	t.Blocks, t.sums = l.Blocks, l.sums
	a := &applier{layer: l, space: newSpace(t, l), paths: paths{tree: t}}
	for _, below := range lower {
		a.lower = append(a.lower, paths{tree: below, hasLinks: true})
	}
	if len(lower) == 0 && l.whiteouts {
		a.unpacked, a.opaque = make(map[string]bool), make(map[string]bool)
	}
	return a
}

func (a *applier) entry(e *entry) error {
	dir, base := path.Split(e.name)
	if base == "" || isRoot(base) {
		return nil
	}
	parent, err := a.enter(dir)
	if err != nil {
		return err
	}
	if len(a.resolved)+len(base) > maxPath {
		return invalid("path is longer than %d bytes", maxPath)
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteout(parent, base, e)
	}
	if len(base) > maxName {
		return invalid("name is longer than %d bytes", maxName)
	}
	t := a.space.tree
	existing := t.lookup(parent, base)
	if existing != none && (e.kind != tar.TypeDir || !t.inodes[existing].is(unix.S_IFDIR)) {
		a.set(parent, base, none)
		existing = none
	}
	if a.unpacked != nil {
		a.unpacked[path.Join(a.resolved, base)] = true
	}
	if e.kind == tar.TypeXGlobalHeader {
		return nil
	}
	n, err := a.create(parent, existing, e)
	if err != nil {
		return err
	}
	if existing == none {
		a.set(parent, base, n)
	}
	if err := a.space.attributes(n, e, a.layer.xattrs.sets[e.xattrs]); err != nil {
		return err
	}
	if e.kind == tar.TypeDir {
		a.dirTimes = append(a.dirTimes, e)
	}
	return nil
}

// set makes a name refer to another inode, or removes it.
func (a *applier) set(dir Number, name string, n Number) {
	if a.space.set(dir, name, n) {
		a.parentPath = "" // might have led through here
	}
}

// enter finds the directory that an entry's name leads to, and makes it if it is not there.
func (a *applier) enter(dir string) (Number, error) {
	if dir == "" || dir == "/" {
		a.parentPath, a.parent, a.resolved = dir, Root, "/"
		return Root, nil
	}
	if dir == a.parentPath {
		return a.parent, nil
	}
	resolved, err := a.paths.resolve(dir)
	if err != nil {
		return none, err
	}
	if len(resolved) > maxPath {
		return none, invalid("path is longer than %d bytes", maxPath)
	}
	t := a.space.tree
	at, end := Root, 0
	for c := range strings.SplitSeq(resolved[1:], "/") {
		end += 1 + len(c)
		if c == "" {
			continue // resolved is "/"
		}
		if !t.inodes[at].is(unix.S_IFDIR) {
			return none, errParent(resolved)
		}
		next := t.lookup(at, c)
		if next == none {
			if next, err = a.imply(at, c, resolved[:end]); err != nil {
				return none, err
			}
		}
		at = next
	}
	if !t.inodes[at].is(unix.S_IFDIR) {
		return none, errParent(resolved)
	}
	a.parentPath, a.parent, a.resolved = dir, at, resolved
	return at, nil
}

func errParent(p string) error {
	return invalid("%q: %w", p, errNotDirectory)
}

// imply makes a directory that no entry has made, and gives it what the same one below has.
func (a *applier) imply(parent Number, name, full string) (Number, error) {
	if len(name) > maxName {
		return none, invalid("name is longer than %d bytes", maxName)
	}
	s := a.space
	if err := s.count(len(name)); err != nil {
		return none, err
	}
	a.implied = true
	n := s.add(parent, unix.S_IFDIR|0o755)
	s.chmod(n, 0o755)
	a.set(parent, name, n)
	for i := range a.lower {
		from := &a.lower[i]
		below, err := from.find(full)
		if err != nil {
			return none, fmt.Errorf("look up implied directory in a layer below: %w", err)
		}
		if below == none {
			continue
		}
		in := &from.tree.inodes[below]
		if !in.is(unix.S_IFDIR) {
			break // hides the directory
		}
		return n, s.copyAttributes(n, in, from.tree.xattrs[in.xattrs])
	}
	return n, nil
}

// whiteout handles every name that begins with .wh.; containerd takes all but the opaque marker, AUFS's own files
// included, for the deletion of what follows the prefix.
func (a *applier) whiteout(parent Number, base string, e *entry) error {
	if base == opaqueMarker {
		if a.unpacked != nil {
			a.empty(parent)
			return nil
		}
		return a.space.xattrs.set(parent, Xattr{Name: opaqueXattr, Value: "y"})
	}
	victim := base[len(whiteoutPrefix):]
	if victim == "" || victim == "." || victim == ".." || len(victim) > maxName {
		return invalid("whiteout of an impossible name")
	}
	if a.unpacked != nil {
		a.set(parent, victim, none)
		return nil
	}
	if a.space.tree.lookup(parent, victim) != none {
		return invalid("whiteout of a name that the layer has too")
	}
	n := a.space.add(parent, unix.S_IFCHR)
	a.set(parent, victim, n)
	a.space.chown(n, e)
	return nil
}

// empty does what an opaque marker at the bottom of a stack does, but once for each path: everything goes that no entry
// has made, under the name that it has now.
func (a *applier) empty(dir Number) {
	if a.opaque[a.resolved] {
		return
	}
	a.opaque[a.resolved] = true
	type place struct {
		dir  Number
		path string
	}
	for todo := []place{{dir, a.resolved}}; len(todo) > 0; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		t := a.space.tree
		for _, c := range t.dirs[t.inodes[at.dir].data].children {
			if c.Inode == none {
				continue
			}
			p := path.Join(at.path, c.Name)
			if !a.unpacked[p] {
				a.set(at.dir, c.Name, none)
			} else if t.inodes[c.Inode].is(unix.S_IFDIR) {
				todo = append(todo, place{c.Inode, p})
			}
		}
	}
}

// setDirTimes sets directory times once more by name after the last entry, as containerd does: a name may by then mean
// something else.
func (a *applier) setDirTimes() error {
	for _, e := range a.dirTimes {
		n, err := a.paths.find("/" + e.name)
		if err != nil {
			return fmt.Errorf("set time of directory %q: %w", e.name, err)
		}
		if n == none {
			return invalid("directory %q was removed by a later entry of the layer", e.name)
		}
		in := &a.space.tree.inodes[n]
		in.mtimeSec, in.mtimeNsec = e.mtimeSec, e.mtimeNsec
	}
	return nil
}
