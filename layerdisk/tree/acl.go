package tree

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Entries of a POSIX ACL as the extended attribute holds them, linux/posix_acl.h and linux/posix_acl_xattr.h.
const (
	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
	aclNoID     = 1<<32 - 1
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

type acl []aclEntry

// parseACL reads the attribute; ok is false for a version that the kernel does not support, which containerd ignores.
func parseACL(v string) (list acl, ok bool, err error) {
	b := []byte(v)
	if len(b) == 0 {
		return nil, true, nil
	}
	if len(b) < 4 || (len(b)-4)%8 != 0 {
		return nil, false, invalid("ACL of %d bytes", len(b))
	}
	if binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, false, nil
	}
	for b = b[4:]; len(b) > 0; b = b[8:] {
		e := aclEntry{
			tag: binary.LittleEndian.Uint16(b), perm: binary.LittleEndian.Uint16(b[2:]), id: binary.LittleEndian.Uint32(b[4:]),
		}
		if e.tag != aclUser && e.tag != aclGroup {
			e.id = aclNoID
		}
		list = append(list, e)
	}
	if len(list) > 0 && !list.valid() {
		return nil, false, invalid("ACL is not well-formed")
	}
	return list, true, nil
}

// valid reports whether the entries are complete and in order, as posix_acl_valid in the kernel wants them.
func (l acl) valid() bool {
	needMask, last := false, uint16(0)
	seen := make(map[uint16]bool, 6)
	for _, e := range l {
		named := e.tag == aclUser || e.tag == aclGroup
		switch {
		case e.perm > 7, e.tag < last, seen[e.tag] && !named, named && e.id == aclNoID:
			return false
		}
		switch e.tag {
		case aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
		default:
			return false
		}
		needMask = needMask || named
		seen[e.tag], last = true, e.tag
	}
	return seen[aclUserObj] && seen[aclGroupObj] && seen[aclOther] && (seen[aclMask] || !needMask)
}

// minimal reports whether the permission bits say as much as the ACL.
func (l acl) minimal() bool {
	for _, e := range l {
		if e.tag == aclUser || e.tag == aclGroup || e.tag == aclMask {
			return false
		}
	}
	return true
}

// masked returns the ACL after chmod(perm).
func (l acl) masked(perm uint16) acl {
	group := uint16(aclGroupObj)
	for _, e := range l {
		if e.tag == aclMask {
			group = aclMask
		}
	}
	out := make(acl, len(l))
	for i, e := range l {
		switch e.tag {
		case aclUserObj:
			e.perm = perm >> 6 & 7
		case group:
			e.perm = perm >> 3 & 7
		case aclOther:
			e.perm = perm & 7
		}
		out[i] = e
	}
	return out
}

func (l acl) encode() string {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range l {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// setACL sets an ACL from the archive as setxattr(2) would; permissions follow from the chmod that comes after it.
func (x *xattrs) setACL(n Number, one Xattr) error {
	in := &x.space.tree.inodes[n]
	if in.is(unix.S_IFLNK) {
		return nil // symbolic links have none; containerd goes on
	}
	list, ok, err := parseACL(one.Value)
	if err != nil || !ok {
		return err
	}
	if one.Name == xattrDefaultACL && !in.is(unix.S_IFDIR) {
		if len(list) == 0 {
			return nil
		}
		return invalid("default ACL on what is no directory")
	}
	if len(list) == 0 || one.Name == xattrAccessACL && list.minimal() {
		x.remove(n, one.Name)
		return nil
	}
	return x.set(n, Xattr{Name: one.Name, Value: list.encode()})
}

// maskACL carries new permissions over to the access ACL.
func (x *xattrs) maskACL(n Number, perm uint16) {
	if x.space.tree.inodes[n].xattrs == 0 {
		return
	}
	v, ok := x.get(n, xattrAccessACL)
	if !ok {
		return
	}
	list, _, err := parseACL(v)
	if err != nil {
		return // cannot be: it was checked when it was set
	}
	x.change(n, func(set []Xattr) []Xattr {
		return append(without(set, xattrAccessACL), Xattr{Name: xattrAccessACL, Value: list.masked(perm).encode()})
	})
}

// inheritACL gives a new inode what the default ACL of its directory says.
func (x *xattrs) inheritACL(parent, n Number) {
	in := &x.space.tree.inodes[n]
	if x.space.tree.inodes[parent].xattrs == 0 || in.is(unix.S_IFLNK) {
		return
	}
	v, ok := x.get(parent, xattrDefaultACL)
	if !ok {
		return
	}
	list, _, err := parseACL(v)
	if err != nil {
		return // cannot be: it was checked when it was set
	}
	x.change(n, func(set []Xattr) []Xattr {
		if in.is(unix.S_IFDIR) {
			set = append(set, Xattr{Name: xattrDefaultACL, Value: v})
		}
		if !list.minimal() {
			// The permissions of what is made are set right after, but for whiteouts, which have none.
			set = append(set, Xattr{Name: xattrAccessACL, Value: list.masked(0).encode()})
		}
		return set
	})
}
