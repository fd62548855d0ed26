package erofs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/tree"
)

// HeaderSize is the room for the caller's header at the start of the disk.
const HeaderSize = 512

const writeSize = 1 << 20

// Write writes everything but the first block: own files, inodes, directories, in sequential writes of 1 MiB. Without
// the first block nothing of it can be mounted.
func (l *Layout) Write(ctx context.Context, out io.WriterAt) error {
	w := &appender{out: out, off: int64(l.img.DataEnd) * blockSize}
	for _, f := range l.img.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.write(f.Data); err != nil {
			return err
		}
		if err := w.pad(blockSize); err != nil {
			return err
		}
	}
	if err := l.writeInodes(ctx, w); err != nil {
		return err
	}
	if err := l.writeBlocks(ctx, w); err != nil {
		return err
	}
	if w.pos() != l.SizeBytes() {
		return fmt.Errorf("wrote up to byte %d, planned %d", w.pos(), l.SizeBytes())
	}
	return w.flush()
}

// Commit writes the first block, which makes the file system valid: the header of up to 512 bytes and the superblock.
// If out can be synced like an os.File, it is before, so that the disk never claims what it does not hold, and after.
func (l *Layout) Commit(ctx context.Context, out io.WriterAt, header []byte) error {
	if len(header) > HeaderSize {
		return invalid("header has %d bytes, there is room for %d", len(header), HeaderSize)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	sync := func() error { return nil }
	if s, ok := out.(interface{ Sync() error }); ok {
		sync = s.Sync
	}
	if err := sync(); err != nil {
		return fmt.Errorf("sync before the superblock: %w", err)
	}
	if _, err := out.WriteAt(superblock(l, header), 0); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	if err := sync(); err != nil {
		return fmt.Errorf("sync superblock: %w", err)
	}
	return nil
}

func (l *Layout) writeInodes(ctx context.Context, w *appender) error {
	meta := w.pos()
	block := l.dirBlock
	var b []byte
	ino := uint32(0)
	err := l.walk(func(src *source, n tree.Number, parent uint64, in *tree.Inode) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		children := src.Children(n)
		s, err := shapeOf(in, children)
		if err != nil {
			return err
		}
		if err := w.skipTo(meta + int64(src.slots[n])*slotSize); err != nil {
			return err
		}
		ino++
		b = appendInode(b[:0], in, s.layout, s.size, l.union(src, n, in, &s, block), ino, s.xattrs)
		b = appendXattrs(b, in.Xattrs)
		switch {
		case s.layout == layoutChunks:
			b = appendChunks(b, in, &s, src.firstBlock)
		case s.layout == layoutInline && s.blocks == 0:
			b = l.appendContents(b, src, n, parent, in, children)
		case s.layout == layoutInline:
			all := l.appendContents(nil, src, n, parent, in, children)
			b = append(b, all[s.blocks*blockSize:]...)
		}
		block += s.blocks
		return w.write(b)
	})
	if err != nil {
		return err
	}
	return w.pad(blockSize)
}

// union is the field of an inode that depends on its type.
func (l *Layout) union(src *source, n tree.Number, in *tree.Inode, s *shape, block uint64) uint32 {
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		switch {
		case s.layout == layoutChunks:
			return uint32(s.chunk)
		case in.Size == 0:
			return holeAddr
		case src == l.sources[0]:
			return uint32(l.fileBlocks[l.own.nodes[n].index])
		}
		return src.blockOf(in)
	case unix.S_IFCHR, unix.S_IFBLK:
		return device(in.DevMajor, in.DevMinor)
	case unix.S_IFDIR, unix.S_IFLNK:
		if s.blocks == 0 {
			return holeAddr
		}
		return uint32(block)
	}
	return 0
}

// appendContents appends the contents of a directory or symbolic link.
func (l *Layout) appendContents(b []byte, src *source, n tree.Number, parent uint64, in *tree.Inode, children []tree.Child) []byte {
	if in.Mode&unix.S_IFMT == unix.S_IFLNK {
		return append(b, in.Target...)
	}
	return appendDir(b, children, func(i int) (uint64, byte) {
		switch i {
		case -1:
			return uint64(src.slots[n]), fileType(unix.S_IFDIR)
		case -2:
			return parent, fileType(unix.S_IFDIR)
		}
		child := children[i].Inode
		if src == l.sources[0] && l.own.nodes[child].kind == ownLayer {
			return uint64(l.sources[1+l.own.nodes[child].index].slots[tree.Root]), fileType(unix.S_IFDIR)
		}
		return uint64(src.slots[child]), fileType(src.Inode(child).Mode)
	})
}

// writeBlocks writes the blocks of directories and links in the order in which writeInodes numbered them.
func (l *Layout) writeBlocks(ctx context.Context, w *appender) error {
	var b []byte
	return l.walk(func(src *source, n tree.Number, parent uint64, in *tree.Inode) error {
		format := in.Mode & unix.S_IFMT
		if format != unix.S_IFDIR && format != unix.S_IFLNK {
			return ctx.Err()
		}
		children := src.Children(n)
		s, err := shapeOf(in, children)
		if err != nil || s.blocks == 0 {
			return err
		}
		b = l.appendContents(b[:0], src, n, parent, in, children)
		if err := w.write(b[:min(uint64(len(b)), s.blocks*blockSize)]); err != nil {
			return err
		}
		return w.pad(blockSize)
	})
}

// appendChunks appends the block of every chunk of a file with holes.
func appendChunks(b []byte, in *tree.Inode, s *shape, firstBlock uint32) []byte {
	runs := in.Runs
	for block, end := uint64(0), blocksOf(s.size); block < end; block += 1 << s.chunk {
		for len(runs) > 0 && block >= uint64(runs[0].FileBlock)+uint64(runs[0].Blocks) {
			runs = runs[1:]
		}
		addr := uint32(holeAddr)
		if len(runs) > 0 && block >= uint64(runs[0].FileBlock) {
			addr = firstBlock + runs[0].FirstBlock + uint32(block) - runs[0].FileBlock
		}
		b = binary.LittleEndian.AppendUint32(b, addr)
	}
	return b
}

// appender makes sequential writes of one size out of many small ones.
type appender struct {
	out io.WriterAt
	off int64 // of buf
	buf []byte
}

func (w *appender) pos() int64 { return w.off + int64(len(w.buf)) }

func (w *appender) write(b []byte) error {
	if w.buf == nil {
		w.buf = make([]byte, 0, writeSize)
	}
	for len(b) > 0 {
		n := min(len(b), writeSize-len(w.buf))
		w.buf = append(w.buf, b[:n]...)
		b = b[n:]
		if len(w.buf) == writeSize {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// skipTo writes zeros up to position pos.
func (w *appender) skipTo(pos int64) error {
	var zeros [blockSize]byte
	for pos > w.pos() {
		if err := w.write(zeros[:min(pos-w.pos(), blockSize)]); err != nil {
			return err
		}
	}
	return nil
}

func (w *appender) pad(to int64) error { return w.skipTo((w.pos() + to - 1) / to * to) }

func (w *appender) flush() error {
	if _, err := w.out.WriteAt(w.buf, w.off); err != nil {
		return fmt.Errorf("write metadata at byte %d: %w", w.off, err)
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}
