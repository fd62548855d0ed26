package tree

import (
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	paxXattrPrefix   = "SCHILY.xattr."
	trustedPrefix    = "trusted."
	xattrCapability  = "security.capability"
	xattrAccessACL   = "system.posix_acl_access"
	xattrDefaultACL  = "system.posix_acl_default"
	maxInternedXattr = 512
)

// xattrTable stores each set of attributes once, because layers built under SELinux and the like give every file the
// same.
type xattrTable struct {
	// sets by index; 0 is the empty one.
	sets  [][]Xattr
	known map[string]uint32
	names *arena
}

func newXattrTable(names *arena) xattrTable {
	return xattrTable{sets: [][]Xattr{nil}, known: make(map[string]uint32), names: names}
}

// store returns the index of set, which must be sorted by name.
func (t *xattrTable) store(set []Xattr) uint32 {
	if len(set) == 0 {
		return 0
	}
	var key strings.Builder
	size := 0
	for _, x := range set {
		size += len(x.Name) + len(x.Value)
	}
	if size <= maxInternedXattr {
		var n [4]byte
		for _, x := range set {
			key.WriteString(x.Name)
			key.WriteByte(0)
			binary.LittleEndian.PutUint32(n[:], uint32(len(x.Value))) //nolint:gosec // at most maxInternedXattr
			key.Write(n[:])
			key.WriteString(x.Value)
		}
		if i, ok := t.known[key.String()]; ok {
			return i
		}
	}
	own := make([]Xattr, len(set))
	for i, x := range set {
		own[i] = Xattr{Name: t.names.keep(x.Name), Value: t.names.keep(x.Value)}
	}
	i := uint32(len(t.sets)) //nolint:gosec // at most one for each change that the limits allow
	t.sets = append(t.sets, own)
	if key.Len() > 0 {
		t.known[key.String()] = i
	}
	return i
}

// xattrs are the extended attributes of a tree that grows.
type xattrs struct {
	space *space
	table xattrTable
	work  []Xattr
}

func (x *xattrs) of(n Number) []Xattr { return x.table.sets[x.space.tree.inodes[n].xattrs] }

func (x *xattrs) get(n Number, name string) (string, bool) {
	for _, have := range x.of(n) {
		if have.Name == name {
			return have.Value, true
		}
	}
	return "", false
}

// change replaces the attributes of n by what edit makes of them.
func (x *xattrs) change(n Number, edit func([]Xattr) []Xattr) {
	work := edit(append(x.work[:0], x.of(n)...))
	slices.SortFunc(work, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	x.space.tree.inodes[n].xattrs = x.table.store(work)
	clear(work)
	x.work = work[:0]
}

func without(set []Xattr, name string) []Xattr {
	return slices.DeleteFunc(set, func(x Xattr) bool { return x.Name == name })
}

func (x *xattrs) remove(n Number, name string) {
	if _, ok := x.get(n, name); ok {
		x.change(n, func(set []Xattr) []Xattr { return without(set, name) })
	}
}

// set sets one attribute that needs no check.
func (x *xattrs) set(n Number, one Xattr) error {
	if old, ok := x.get(n, one.Name); ok && old == one.Value {
		return nil
	}
	if err := x.space.charge(len(one.Name) + len(one.Value)); err != nil {
		return err
	}
	x.change(n, func(set []Xattr) []Xattr { return append(without(set, one.Name), one) })
	return nil
}

// copied gives a new directory the attributes of another. What containerd does not copy are those of overlayfs, which
// are about the other directory alone.
func (x *xattrs) copied(n Number, set []Xattr) error {
	for _, one := range set {
		if strings.HasPrefix(one.Name, trustedPrefix) {
			continue
		}
		if err := x.set(n, one); err != nil {
			return err
		}
	}
	return nil
}

// fromArchive sets the attributes that the archive has for n, as lsetxattr(2) by root on ext4 would take them.
func (x *xattrs) fromArchive(n Number, set []Xattr) error {
	for _, one := range set {
		if err := x.checked(n, one); err != nil {
			return err
		}
	}
	return nil
}

// checked sets one attribute of an archive.
func (x *xattrs) checked(n Number, one Xattr) error {
	if one.Name == "" || len(one.Name) > maxName {
		return invalid("extended attribute with a name of %d bytes", len(one.Name))
	}
	if len(one.Value) > maxXattr {
		return invalid("extended attribute %q has %d bytes, Linux takes %d", one.Name, len(one.Value), maxXattr)
	}
	in := &x.space.tree.inodes[n]
	switch one.Name {
	case xattrAccessACL, xattrDefaultACL:
		return x.setACL(n, one)
	case xattrCapability:
		value, err := normalCapability(one.Value)
		if err != nil {
			return err
		}
		one.Value = value
		return x.set(n, one)
	}
	suffix, user := strings.CutPrefix(one.Name, "user.")
	if user && !in.is(unix.S_IFREG) && !in.is(unix.S_IFDIR) {
		return nil // the kernel has no such attributes on other types; containerd goes on
	}
	security := false
	if !user {
		suffix, security = strings.CutPrefix(one.Name, "security.")
	}
	if !user && !security {
		return nil // no file system has such attributes; containerd goes on
	}
	if suffix == "" {
		return invalid("extended attribute %q has no name behind its prefix", one.Name)
	}
	return x.set(n, one)
}

// Versions and flag of struct vfs_cap_data, linux/capability.h.
const (
	capRevision2 = 0x02000000
	capRevision3 = 0x03000000
	capEffective = 0x000001
	capSize2     = 20
	capSize3     = 24
)

// normalCapability returns file capabilities as the kernel gives them back: version 2, or 3 if they belong to another
// user namespace than the initial one (see cap_inode_getsecurity). What the kernel does not take is refused.
func normalCapability(v string) (string, error) {
	b := []byte(v)
	if len(b) < 4 {
		return "", invalid("%s has %d bytes", xattrCapability, len(b))
	}
	magic := binary.LittleEndian.Uint32(b)
	switch revision := magic &^ capEffective; {
	case revision == capRevision2 && len(b) == capSize2:
		return v, nil
	case revision == capRevision3 && len(b) == capSize3:
		root := binary.LittleEndian.Uint32(b[capSize2:])
		if root != 0 {
			if root == 1<<32-1 {
				return "", invalid("%s belongs to no user", xattrCapability)
			}
			return v, nil
		}
		b = b[:capSize2]
	default:
		return "", invalid("%s is of an unknown version", xattrCapability)
	}
	binary.LittleEndian.PutUint32(b, capRevision2|magic&capEffective)
	return string(b), nil
}
