package tree

import (
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	paxXattrPrefix   = "SCHILY.xattr."
	xattrCapability  = "security.capability"
	xattrAccessACL   = "system.posix_acl_access"
	xattrDefaultACL  = "system.posix_acl_default"
	maxInternedXattr = 512
)

// xattrTable stores each set of attributes once, because layers built under SELinux and the like give every file the
// same.
type xattrTable struct {
	known map[string]uint32
	work  []Xattr
}

// store returns the index of set, which must be sorted by name, in the tree's table.
func (r *reader) store(set []Xattr) uint32 {
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
			binary.LittleEndian.PutUint32(n[:], uint32(len(x.Value)))
			key.Write(n[:])
			key.WriteString(x.Value)
		}
		if i, ok := r.xattrs.known[key.String()]; ok {
			return i
		}
	}
	own := make([]Xattr, len(set))
	for i, x := range set {
		own[i] = Xattr{Name: r.names.keep(x.Name), Value: r.names.keep(x.Value)}
	}
	i := uint32(len(r.t.xattrs))
	r.t.xattrs = append(r.t.xattrs, own)
	if key.Len() > 0 {
		if r.xattrs.known == nil {
			r.xattrs.known = make(map[string]uint32)
		}
		r.xattrs.known[key.String()] = i
	}
	return i
}

func (r *reader) get(n Number, name string) (string, bool) {
	for _, x := range r.t.xattrs[r.t.inodes[n].xattrs] {
		if x.Name == name {
			return x.Value, true
		}
	}
	return "", false
}

// change replaces the attributes of n by what edit makes of them.
func (r *reader) change(n Number, edit func([]Xattr) []Xattr) {
	work := edit(append(r.xattrs.work[:0], r.t.xattrs[r.t.inodes[n].xattrs]...))
	slices.SortFunc(work, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	r.t.inodes[n].xattrs = r.store(work)
	clear(work)
	r.xattrs.work = work[:0]
}

func without(set []Xattr, name string) []Xattr {
	return slices.DeleteFunc(set, func(x Xattr) bool { return x.Name == name })
}

func (r *reader) removeXattr(n Number, name string) {
	if _, ok := r.get(n, name); ok {
		r.change(n, func(set []Xattr) []Xattr { return without(set, name) })
	}
}

// setXattr sets one attribute that needs no check.
func (r *reader) setXattr(n Number, x Xattr) error {
	if old, ok := r.get(n, x.Name); ok && old == x.Value {
		return nil
	}
	if r.metadata += int64(len(x.Name) + len(x.Value)); r.metadata > r.limits.MaxMetadataBytes {
		return overLimit("bytes of names and attributes", r.limits.MaxMetadataBytes)
	}
	r.change(n, func(set []Xattr) []Xattr { return append(without(set, x.Name), x) })
	return nil
}

// archiveXattrs sets the attributes that the archive has for n, as lsetxattr(2) by root on ext4 would take them.
func (r *reader) archiveXattrs(n Number, records map[string]string) error {
	if len(records) == 0 {
		return nil
	}
	var found []Xattr
	for key, value := range records {
		if name, ok := strings.CutPrefix(key, paxXattrPrefix); ok {
			found = append(found, Xattr{Name: name, Value: value})
		}
	}
	// In a fixed order, so that a layer with two bad attributes always gives the same error.
	slices.SortFunc(found, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	for _, x := range found {
		if err := r.archiveXattr(n, x); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) archiveXattr(n Number, x Xattr) error {
	if strings.HasPrefix(x.Name, "trusted.") {
		return nil // containerd does not let an archive set these
	}
	if x.Name == "" || len(x.Name) > maxName {
		return invalid("extended attribute with a name of %d bytes", len(x.Name))
	}
	if len(x.Value) > maxXattr {
		return invalid("extended attribute %q has %d bytes, Linux takes %d", x.Name, len(x.Value), maxXattr)
	}
	in := &r.t.inodes[n]
	switch x.Name {
	case xattrAccessACL, xattrDefaultACL:
		return r.setACL(n, x)
	case xattrCapability:
		value, err := normalCapability(x.Value)
		if err != nil {
			return err
		}
		x.Value = value
		return r.setXattr(n, x)
	}
	suffix, user := strings.CutPrefix(x.Name, "user.")
	if user && !in.is(unix.S_IFREG) && !in.is(unix.S_IFDIR) {
		return nil // the kernel has none on other types; containerd goes on
	}
	security := false
	if !user {
		suffix, security = strings.CutPrefix(x.Name, "security.")
	}
	if !user && !security {
		return nil // no file system has such attributes; containerd goes on
	}
	if suffix == "" {
		return invalid("extended attribute %q has no name behind its prefix", x.Name)
	}
	return r.setXattr(n, x)
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
