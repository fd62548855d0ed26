package erofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/tree"
)

// ErrDamaged is the class of file systems that this package did not write, or that something has happened to since;
// errdefs.ErrDataLoss.
var ErrDamaged = fmt.Errorf("file system is damaged: %w", errdefs.ErrDataLoss)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrDamaged)
}

// Bounds on what a damaged file system can cost.
const (
	maxPath      = 4095
	maxDirBytes  = 1 << 30
	maxReadNames = 16 << 20
)

// Reader finds out where a file system that this package wrote has the contents of files, so that another one can be
// made on the same disk that has them too. It trusts nothing it reads, and needs no mount. It is not safe for
// concurrent use.
type Reader struct {
	r      io.ReaderAt
	meta   int64
	root   uint64
	blocks uint64
	names  int

	window   []byte
	windowAt int64
}

// Node is a file as Walk finds it.
type Node struct {
	Mode uint32
	Size int64
	// FirstBlock of a regular file without holes, from the beginning of the disk.
	FirstBlock uint32
	// Sparse says that the file has holes; then Runs are its stored stretches, FirstBlock from the beginning of the
	// disk.
	Sparse bool
	Runs   []tree.Run
	Xattrs []tree.Xattr
}

// Open reads the superblock. Errors are ErrDamaged and those of r.
func Open(r io.ReaderAt) (*Reader, error) {
	first := make([]byte, blockSize)
	if err := readFull(r, first, 0); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	s := first[superOffset:]
	le := binary.LittleEndian
	if le.Uint32(s) != superMagic || s[12] != blockBits || le.Uint32(s[80:])&^uint32(featureChunkedFile) != 0 {
		return nil, damaged("superblock is not one that is written here")
	}
	want := le.Uint32(s[4:])
	sum := bytes.Clone(s)
	le.PutUint32(sum[4:], 0)
	if got := ^crc32.Checksum(sum, crc32.MakeTable(crc32.Castagnoli)); got != want {
		return nil, damaged("superblock's checksum is %08x, its bytes give %08x", want, got)
	}
	return &Reader{
		r: r, meta: int64(le.Uint32(s[40:])) * blockSize, root: uint64(le.Uint16(s[14:])), blocks: uint64(le.Uint32(s[36:])),
	}, nil
}

// Metadata is the part of the disk that has all inodes and directories.
func (r *Reader) Metadata() (offset, length int64) { return r.meta, int64(r.blocks)*blockSize - r.meta }

// Walk visits everything below directory dir, and the directory itself as ".", each directory before what is in it. The
// paths are relative to dir. Errors are ErrDamaged, fs.ErrNotExist for dir, those of visit and of the disk.
func (r *Reader) Walk(ctx context.Context, dir string, visit func(name string, n Node) error) error {
	nid := r.root
	for element := range strings.SplitSeq(dir, "/") {
		found := false
		err := r.dir(nid, func(name string, child uint64) error {
			if name == element {
				nid, found = child, true
			}
			return nil
		})
		if err == nil && !found {
			err = fs.ErrNotExist
		}
		if err != nil {
			return fmt.Errorf("find %s: %w", dir, err)
		}
	}
	r.names = 0
	return r.walk(ctx, nid, ".", visit)
}

func (r *Reader) walk(ctx context.Context, nid uint64, name string, visit func(string, Node) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	in, err := r.inode(nid)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	node, err := r.node(in)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if err := visit(name, node); err != nil {
		return err
	}
	if node.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	type child struct {
		name string
		nid  uint64
	}
	var children []child
	err = r.dir(nid, func(base string, nid uint64) error {
		// The bound also ends a walk in circles.
		if r.names++; r.names > maxReadNames || len(name)+1+len(base) > maxPath {
			return damaged("%q: more than %d names, or paths of more than %d bytes", name, maxReadNames, maxPath)
		}
		children = append(children, child{strings.Clone(base), nid})
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := r.walk(ctx, c.nid, path.Join(name, c.name), visit); err != nil {
			return err
		}
	}
	return nil
}

// rawInode is an inode as it lies on the disk.
type rawInode struct {
	at     int64
	layout uint16
	mode   uint32
	size   uint64
	union  uint32
	xattrs int64
}

func (r *Reader) inode(nid uint64) (rawInode, error) {
	if nid > math.MaxUint32 {
		return rawInode{}, damaged("inode number %d is out of range", nid)
	}
	in := rawInode{at: r.meta + int64(nid)*slotSize}
	b, err := r.bytes(in.at, inodeSize)
	if err != nil {
		return in, err
	}
	le := binary.LittleEndian
	format := le.Uint16(b)
	in.layout = format >> 1
	if units := int64(le.Uint16(b[2:])); units > 0 {
		in.xattrs = xattrHeaderSize + (units-1)*xattrEntrySize
	}
	in.mode, in.size, in.union = uint32(le.Uint16(b[4:])), le.Uint64(b[8:]), le.Uint32(b[16:])
	if format&1 != 1 || in.layout != layoutPlain && in.layout != layoutInline && in.layout != layoutChunks || in.size > math.MaxInt64 {
		return in, damaged("inode %d is of a form that is not written here", nid)
	}
	return in, nil
}

func (r *Reader) node(in rawInode) (Node, error) {
	n := Node{Mode: in.mode, Size: int64(in.size)} //nolint:gosec // checked by inode
	var err error
	if n.Xattrs, err = r.xattrs(in); err != nil || in.mode&unix.S_IFMT != unix.S_IFREG {
		return n, err
	}
	switch {
	case in.layout == layoutChunks:
		n.Sparse = true
		n.Runs, err = r.chunks(in)
		return n, err
	case in.layout != layoutPlain:
		return n, damaged("contents of a regular file among the inodes")
	case in.size > 0:
		n.FirstBlock = in.union
		return n, r.inside(uint64(in.union), blocksOf(in.size))
	}
	return n, nil
}

// inside refuses contents that lie outside the allowed blocks.
func (r *Reader) inside(first, blocks uint64) error {
	if first == 0 || blocks > r.blocks || first > r.blocks-blocks {
		return damaged("blocks %d to %d are not on the disk", first, first+blocks)
	}
	return nil
}

func (r *Reader) chunks(in rawInode) ([]tree.Run, error) {
	chunkBits := in.union & 0x1f
	if in.union > 0x1f || blocksOf(in.size) > math.MaxUint32 {
		return nil, damaged("chunks of a form that is not written here")
	}
	per := uint64(1) << chunkBits
	total := blocksOf(in.size)
	count := (total + per - 1) / per
	at := in.at + inodeSize + in.xattrs
	var runs []tree.Run
	for i := uint64(0); i < count; i++ {
		b, err := r.bytes(at+int64(i)*chunkEntrySize, chunkEntrySize) //nolint:gosec // far below
		if err != nil {
			return nil, err
		}
		first := binary.LittleEndian.Uint32(b)
		if first == holeAddr {
			continue
		}
		blocks := min(per, total-i*per)
		if err := r.inside(uint64(first), blocks); err != nil {
			return nil, err
		}
		run := tree.Run{FileBlock: uint32(i * per), FirstBlock: first, Blocks: uint32(blocks)} //nolint:gosec // less than total
		if last := len(runs) - 1; last >= 0 && runs[last].FileBlock+runs[last].Blocks == run.FileBlock &&
			runs[last].FirstBlock+runs[last].Blocks == run.FirstBlock {
			runs[last].Blocks += run.Blocks
			continue
		}
		runs = append(runs, run)
	}
	return runs, nil
}

func (r *Reader) xattrs(in rawInode) ([]tree.Xattr, error) {
	if in.xattrs <= xattrHeaderSize {
		return nil, nil
	}
	all, err := r.bytes(in.at+inodeSize, in.xattrs)
	if err != nil {
		return nil, err
	}
	var list []tree.Xattr
	for b := all[xattrHeaderSize:]; len(b) > 0; {
		if len(b) < xattrEntrySize {
			return nil, damaged("extended attributes end within one")
		}
		prefix, ok := xattrPrefix(b[1])
		name, value := int(b[0]), int(binary.LittleEndian.Uint16(b[2:]))
		size := align(xattrEntrySize+name+value, xattrEntrySize)
		if !ok || size > len(b) {
			return nil, damaged("extended attribute of a form that is not written here")
		}
		list = append(list, tree.Xattr{
			Name: prefix + string(b[xattrEntrySize:xattrEntrySize+name]), Value: string(b[xattrEntrySize+name : xattrEntrySize+name+value]),
		})
		b = b[size:]
	}
	return list, nil
}

// xattrPrefix is the inverse of splitXattr.
func xattrPrefix(index byte) (string, bool) {
	switch index {
	case 1:
		return "user.", true
	case 2:
		return "system.posix_acl_access", true
	case 3:
		return "system.posix_acl_default", true
	case 4:
		return "trusted.", true
	case 6:
		return "security.", true
	}
	return "", false
}

// dir calls each for every name of a directory but "." and "..". The name is valid until each returns.
func (r *Reader) dir(nid uint64, each func(name string, nid uint64) error) error {
	in, err := r.inode(nid)
	if err != nil {
		return err
	}
	if in.mode&unix.S_IFMT != unix.S_IFDIR || in.layout == layoutChunks || in.size > maxDirBytes {
		return damaged("inode %d is no directory, or one of %d bytes", nid, in.size)
	}
	for at := uint64(0); at < in.size; at += blockSize {
		n := min(blockSize, in.size-at)
		where := (int64(in.union) + int64(at/blockSize)) * blockSize //nolint:gosec // at is less than maxDirBytes
		if in.layout == layoutInline && at+blockSize > in.size {
			where = in.at + inodeSize + in.xattrs
		}
		b, err := r.bytes(where, int64(n)) //nolint:gosec // at most blockSize
		if err != nil {
			return err
		}
		if err := dirBlock(bytes.Clone(b), each); err != nil {
			return err
		}
	}
	return nil
}

// dirBlock reads the names in one block of a directory.
func dirBlock(b []byte, each func(string, uint64) error) error {
	le := binary.LittleEndian
	if len(b) < direntSize {
		return damaged("block of a directory has %d bytes", len(b))
	}
	entries := int(le.Uint16(b[8:])) / direntSize
	for i := range entries {
		if (i+1)*direntSize > len(b) {
			return damaged("entries of a directory go beyond its block")
		}
		e := b[i*direntSize:]
		start, end := int(le.Uint16(e[8:])), len(b)
		if i+1 < entries && (i+2)*direntSize <= len(b) {
			end = int(le.Uint16(e[direntSize+8:]))
		}
		if start < entries*direntSize || end < start || end > len(b) {
			return damaged("name in a directory lies outside its block")
		}
		name, _, _ := strings.Cut(string(b[start:end]), "\x00")
		if name == "." || name == ".." {
			continue
		}
		if name == "" || strings.Contains(name, "/") {
			return damaged("directory has the name %q", name)
		}
		if err := each(name, le.Uint64(e)); err != nil {
			return err
		}
	}
	return nil
}

// readAhead is one read: metadata is read nearly in its order on the disk.
const readAhead = 1 << 20

// bytes gives n bytes of the disk, valid until the next call.
func (r *Reader) bytes(at, n int64) ([]byte, error) {
	end := int64(r.blocks) * blockSize //nolint:gosec // 32 bits of blocks
	if at < 0 || n < 0 || n > end || at > end-n {
		return nil, damaged("bytes %d to %d are not on the disk", at, at+n)
	}
	if at < r.windowAt || at+n > r.windowAt+int64(len(r.window)) {
		r.windowAt = at / blockSize * blockSize
		size := min(end-r.windowAt, max(readAhead, at-r.windowAt+n))
		if int64(cap(r.window)) < size {
			r.window = make([]byte, size)
		}
		r.window = r.window[:size]
		if err := readFull(r.r, r.window, r.windowAt); err != nil {
			r.window = r.window[:0]
			return nil, err
		}
	}
	return r.window[at-r.windowAt : at-r.windowAt+n], nil
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return damaged("the disk ends at byte %d", at+int64(n))
	}
	return err
}
