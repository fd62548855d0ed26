package builder

import (
	"path/filepath"

	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/layerdisk/tree"
)

// Room that ext4 needs, by the documentation of its layout (kernel, Documentation/filesystems/ext4).
const (
	ext4InodeBytes = 256
	// ext4InlineXattrs is what fits behind the 160 bytes of an inode; more takes a block.
	ext4InlineXattrs = ext4InodeBytes - 160
	// ext4FastLink is the longest link target that needs no block.
	ext4FastLink = 59
	// ext4ExtentBytes is the largest extent, 32768 blocks; the tree of a file's extents needs a block for 340 of them.
	ext4ExtentBlocks = 32768
	ext4TreeEntries  = 340
	// ext4SpareInodes are the reserved ones and lost+found.
	ext4SpareInodes = 64
	// ext4SparePart of the space, and ext4SpareBlocks, are for bitmaps, group descriptors and imperfect packing of
	// directories.
	ext4SparePart   = 50
	ext4SpareBlocks = 2048
)

// ext4Size in blocks, and in bytes for all.
type ext4Size struct {
	blocks, inodes int64
	// total is the file system with the index behind it.
	total int64
}

// size works out what the file system needs; with a size that was asked for, it gets all of that.
func (w *ext4Writer) size(listings [][]byte, encoded []byte) ext4Size {
	s := ext4Size{inodes: ext4SpareInodes + int64(len(listings)) + 8}
	s.blocks = blocksFor(int64(len(encoded))) + 16
	for i, l := range w.b.plan.layers {
		s.blocks += blocksFor(int64(len(listings[i]))) + ext4Blocks(l.tree)
		s.inodes += l.tree.Inodes
	}
	s.blocks += blocksFor(s.inodes * ext4InodeBytes)
	s.blocks += s.blocks/ext4SparePart + ext4SpareBlocks
	indexBlocks := blocksFor(int64(len(encoded)))
	if fixed := w.b.opts.Output.SizeBytes / blockBytes; fixed-indexBlocks > s.blocks {
		s.blocks = fixed - indexBlocks
	}
	s.total = (s.blocks + indexBlocks) * blockBytes
	return s
}

func blocksFor(bytes int64) int64 { return (bytes + blockBytes - 1) / blockBytes }

// ext4Blocks are the blocks of one layer's files, directories, links and attributes. Files are counted without holes,
// since unpacking writes them in full.
func ext4Blocks(t *tree.Tree) int64 {
	var blocks int64
	dirBytes := make(map[string]int64)
	for e := range t.Entries() {
		// A directory entry has 8 bytes and the name, padded to 4; blocks split in halves are at least half full.
		dirBytes[filepath.Dir(e.Path)] += 2 * int64(8+(len(filepath.Base(e.Path))+3)&^3)
		if e.HardLink != "" {
			continue
		}
		var xattrs int64
		for name, value := range e.Xattrs {
			xattrs += 16 + int64((len(name)+3)&^3+(len(value)+3)&^3)
		}
		if xattrs > ext4InlineXattrs {
			blocks++
		}
		switch {
		case e.Type == attrs.Regular:
			n := blocksFor(e.Size)
			blocks += n + n/ext4ExtentBlocks/ext4TreeEntries
			if n > ext4ExtentBlocks {
				blocks++
			}
		case e.Type == attrs.Directory:
			blocks++
		case e.Type == attrs.Symlink && e.Size > ext4FastLink:
			blocks++
		}
	}
	for _, n := range dirBytes {
		blocks += blocksFor(n)
	}
	return blocks
}
