package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/tree"
)

// On-disk constants of EROFS, fs/erofs/erofs_fs.h of Linux.
const (
	blockBits = 12
	blockSize = tree.BlockSize

	superOffset           = 1024
	superMagic            = 0xe0f5e1e2
	featureCompatChecksum = 0x1 // the superblock's block is checked
	featureCompatMtime    = 0x2 // inode times are modification times
	featureChunkedFile    = 0x4 // incompatible before Linux 5.15

	slotSize  = 32 // a nid counts these from the first metadata block
	inodeSize = 64

	layoutPlain  = 0
	layoutInline = 2
	layoutChunks = 4

	chunkEntrySize = 4
	holeAddr       = 1<<32 - 1
	// minChunkBits is the unit at which package tree makes holes, 64 KiB, over the block size; more than 1 GiB per
	// chunk saves nothing.
	minChunkBits = 4
	maxChunkBits = 18

	direntSize = 12

	xattrHeaderSize = 12
	xattrEntrySize  = 4
	maxXattrValue   = 1<<16 - 1
	maxXattrUnits   = 1<<16 - 1
)

// superblock returns the first block of the file system: header in the 1024 bytes that EROFS leaves free, then the
// superblock.
func superblock(l *Layout, header []byte) []byte {
	b := make([]byte, blockSize)
	copy(b, header)
	s := b[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], featureCompatChecksum|featureCompatMtime)
	s[12] = blockBits
	le.PutUint16(s[14:], uint16(l.rootSlot))
	le.PutUint64(s[16:], l.inodes)
	le.PutUint32(s[36:], uint32(l.blocks))
	le.PutUint32(s[40:], uint32(l.metaBlock))
	copy(s[48:64], l.uuid[:])
	if l.holes > 0 {
		le.PutUint32(s[80:], featureChunkedFile)
	}
	// The kernel's crc32c neither starts nor ends inverted the way Go's does.
	le.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// appendInode appends the 64-byte inode; u is its block, device or chunk format.
func appendInode(b []byte, in *tree.Inode, layout uint16, size uint64, u, ino uint32, xattrBytes int) []byte {
	le := binary.LittleEndian
	units := 0
	if xattrBytes > 0 {
		units = (xattrBytes-xattrHeaderSize)/xattrEntrySize + 1
	}
	b = le.AppendUint16(b, 1|layout<<1)
	b = le.AppendUint16(b, uint16(units))
	b = le.AppendUint16(b, uint16(in.Mode))
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, size)
	b = le.AppendUint32(b, u)
	b = le.AppendUint32(b, ino)
	b = le.AppendUint32(b, in.UID)
	b = le.AppendUint32(b, in.GID)
	b = le.AppendUint64(b, uint64(in.MtimeSec))
	b = le.AppendUint32(b, in.MtimeNsec)
	b = le.AppendUint32(b, in.Nlink)
	return append(b, make([]byte, 16)...)
}

// device encodes a device number as the kernel's new_encode_dev does.
func device(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

// splitXattr returns the index that stands for a name's prefix and the rest; ok is false for names EROFS cannot hold.
func splitXattr(name string) (index byte, rest string, ok bool) {
	switch name {
	case "system.posix_acl_access":
		return 2, "", true
	case "system.posix_acl_default":
		return 3, "", true
	}
	if rest, ok := strings.CutPrefix(name, "user."); ok {
		return 1, rest, true
	}
	if rest, ok := strings.CutPrefix(name, "trusted."); ok {
		return 4, rest, true
	}
	if rest, ok := strings.CutPrefix(name, "security."); ok {
		return 6, rest, true
	}
	return 0, "", false
}

// xattrBytes is the space that attributes take behind their inode.
func xattrBytes(set []tree.Xattr) int {
	if len(set) == 0 {
		return 0
	}
	n := xattrHeaderSize
	for _, x := range set {
		_, rest, _ := splitXattr(x.Name)
		n += align(xattrEntrySize+len(rest)+len(x.Value), xattrEntrySize)
	}
	return n
}

func appendXattrs(b []byte, set []tree.Xattr) []byte {
	if len(set) == 0 {
		return b
	}
	b = append(b, make([]byte, xattrHeaderSize)...)
	for _, x := range set {
		index, rest, _ := splitXattr(x.Name)
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, rest...)
		b = append(b, x.Value...)
		for n := xattrEntrySize + len(rest) + len(x.Value); n%xattrEntrySize != 0; n++ {
			b = append(b, 0)
		}
	}
	return b
}

// fileType is the type in a directory entry.
func fileType(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

func align(n, to int) int { return (n + to - 1) / to * to }
