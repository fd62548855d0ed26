package erofs

import (
	"fmt"
	"math"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/tree"
)

// Errors by class.
var (
	// ErrInvalid is the class of images that make no sense, such as data regions that overlap;
	// errdefs.ErrInvalidArgument.
	ErrInvalid = fmt.Errorf("image is not valid: %w", errdefs.ErrInvalidArgument)
	// ErrTooBig is the class of images beyond what EROFS can hold; errdefs.ErrResourceExhausted.
	ErrTooBig = fmt.Errorf("too big for EROFS: %w", errdefs.ErrResourceExhausted)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrInvalid)
}

// Image is what to write.
type Image struct {
	// UUID of the file system.
	UUID [16]byte
	// Layers and where they appear.
	Layers []Layer
	// Files of berth's own: mode 0644, owner 0:0, time 0, as are (with 0755) the directories above them and the layers.
	Files []File
	// DataEnd is the first block behind all data regions, 1 if there are none.
	DataEnd uint64
	// KeptEnd is the first block behind what was on the disk before, 0 if nothing was. Regions of layers before it may
	// overlap: such a layer has the region from its first to its last block, wherever the rest is.
	KeptEnd uint64
}

// Layer is a tree whose file contents are on the disk.
type Layer struct {
	// Path of the layer's directory in the file system, such as l/1a.
	Path string
	Tree *tree.Tree
	// FirstBlock of the layer's data region of Tree.Blocks blocks, at least 1. Layers that are looks of one tree
	// (tree.On) have the same region.
	FirstBlock uint64
	// Moved are files without holes whose contents lie elsewhere in the data regions: their first block in the tree to
	// that on the disk. Their place in the layer's region is not read.
	Moved map[uint32]uint32
}

// File is written contiguous and plain, so that it can be read without the file system. Data is not copied.
type File struct {
	Path string
	Data []byte
}

// Layout is an image with every position decided. Its memory is 4 bytes per inode besides the trees.
type Layout struct {
	img  Image
	own  *ownTree
	uuid [16]byte

	sources []*source // own tree first, then the layers

	fileBlocks []uint64
	metaBlock  uint64
	metaBytes  uint64
	dirBlock   uint64 // first block behind the inodes
	dirBlocks  uint64
	blocks     uint64
	rootSlot   uint32
	inodes     uint64
	holes      int64
}

// Plan decides the layout of an image without writing anything. The image's trees and files must not change afterwards.
// The same image always gives the same layout.
func Plan(img Image) (*Layout, error) {
	if err := checkRegions(&img); err != nil {
		return nil, err
	}
	own, err := newOwnTree(&img)
	if err != nil {
		return nil, err
	}
	l := &Layout{img: img, own: own, uuid: img.UUID, sources: []*source{newSource(own, 0)}}
	next := img.DataEnd
	for _, f := range img.Files {
		l.fileBlocks = append(l.fileBlocks, next)
		next += blocksOf(uint64(len(f.Data)))
	}
	for _, layer := range img.Layers {
		src := newSource(layer.Tree, uint32(layer.FirstBlock))
		src.moved = layer.Moved
		l.sources = append(l.sources, src)
	}
	l.metaBlock = next
	if err := l.place(); err != nil {
		return nil, err
	}
	l.dirBlock = l.metaBlock + blocksOf(l.metaBytes)
	l.blocks = l.dirBlock + l.dirBlocks
	if l.blocks > math.MaxUint32 {
		return nil, fmt.Errorf("%d blocks of %d bytes, at most %d (16 TiB) can be numbered; spread the layers over several disks: %w",
			l.blocks, blockSize, uint64(math.MaxUint32), ErrTooBig)
	}
	return l, nil
}

// SizeBytes is the size of the whole file system.
func (l *Layout) SizeBytes() int64 { return int64(l.blocks) * blockSize }

// MetadataBytes is what Write writes, own files included.
func (l *Layout) MetadataBytes() int64 { return int64(l.blocks-l.img.DataEnd) * blockSize }

// Holes is the number of files with holes. If it is not 0, the file system needs Linux 5.15, otherwise 5.4.
func (l *Layout) Holes() int64 { return l.holes }

// FileOffset is the position in bytes of own file path; ok is false if there is no such file.
func (l *Layout) FileOffset(path string) (offset int64, ok bool) {
	for i, f := range l.img.Files {
		if f.Path == path {
			return int64(l.fileBlocks[i]) * blockSize, true
		}
	}
	return 0, false
}

func checkRegions(img *Image) error {
	if img.DataEnd < 1 || img.DataEnd > math.MaxUint32 {
		return fmt.Errorf("data ends at block %d, must be from 1 to %d: %w", img.DataEnd, uint64(math.MaxUint32), ErrTooBig)
	}
	layers := slices.Clone(img.Layers)
	slices.SortFunc(layers, func(a, b Layer) int {
		if a.FirstBlock != b.FirstBlock {
			return int(int64(a.FirstBlock) - int64(b.FirstBlock))
		}
		return int(int64(a.Tree.Blocks) - int64(b.Tree.Blocks))
	})
	end := uint64(1)
	for i, l := range layers {
		for _, to := range l.Moved {
			if to == 0 || uint64(to) >= img.DataEnd {
				return invalid("layer %s has contents at block %d, where none can be", l.Path, to)
			}
		}
		if behind := l.FirstBlock + l.Tree.Blocks; l.FirstBlock > 0 && l.FirstBlock < behind && behind <= img.KeptEnd && behind <= img.DataEnd {
			continue
		}
		if i > 0 && l.FirstBlock == layers[i-1].FirstBlock && l.Tree.SharesContents(layers[i-1].Tree) {
			continue
		}
		if l.FirstBlock < end {
			return invalid("data region of layer %s begins at block %d, inside another region or the superblock", l.Path, l.FirstBlock)
		}
		end = l.FirstBlock + l.Tree.Blocks
		if end > img.DataEnd || end < l.FirstBlock {
			return invalid("data region of layer %s ends at block %d, behind the end of all data", l.Path, end)
		}
	}
	return nil
}

func blocksOf(bytes uint64) uint64 { return (bytes + blockSize - 1) / blockSize }

// source is a tree to place and where its inodes went.
type source struct {
	treeLike
	firstBlock uint32
	moved      map[uint32]uint32
	slots      []uint32 // nid per inode, 0 for none yet
}

// blockOf is where a file without holes begins on the disk.
func (s *source) blockOf(in *tree.Inode) uint32 {
	if to, ok := s.moved[in.FirstBlock]; ok {
		return to
	}
	return s.firstBlock + in.FirstBlock
}

// treeLike is what tree.Tree and ownTree have in common.
type treeLike interface {
	Inode(n tree.Number) tree.Inode
	Children(n tree.Number) []tree.Child
	Numbers() int
}

func newSource(t treeLike, firstBlock uint32) *source {
	return &source{treeLike: t, firstBlock: firstBlock, slots: make([]uint32, t.Numbers())}
}

// shape is the form that one inode takes on the disk.
type shape struct {
	layout uint16
	size   uint64
	xattrs int // bytes
	tail   int // bytes behind the attributes: last part of a directory or link, or the list of chunks
	blocks uint64
	chunk  int // bits over the block size
}

// total is the space among the inodes.
func (s *shape) total() int { return inodeSize + s.xattrs + s.tail }

func shapeOf(in *tree.Inode, children []tree.Child) (shape, error) {
	s := shape{size: uint64(in.Size), xattrs: xattrBytes(in.Xattrs)}
	for _, x := range in.Xattrs {
		if _, _, ok := splitXattr(x.Name); !ok || len(x.Value) > maxXattrValue {
			return s, fmt.Errorf("extended attribute %q of %d bytes, at most %d fit: %w", x.Name, len(x.Value), maxXattrValue, ErrTooBig)
		}
	}
	if s.xattrs/xattrEntrySize > maxXattrUnits {
		return s, fmt.Errorf("extended attributes take %d bytes, at most %d fit: %w", s.xattrs, maxXattrUnits*xattrEntrySize, ErrTooBig)
	}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if in.Sparse {
			s.layout, s.chunk = layoutChunks, chunkBits(in.Runs, blocksOf(s.size))
			s.tail = chunkEntrySize * int((blocksOf(s.size)+1<<s.chunk-1)>>s.chunk)
		}
		return s, nil
	case unix.S_IFDIR:
		s.size = dirSize(children)
	case unix.S_IFLNK:
	default:
		return s, nil
	}
	s.blocks = blocksOf(s.size)
	if tail := int(s.size % blockSize); tail > 0 && inodeSize+s.xattrs+tail <= blockSize {
		s.layout, s.tail = layoutInline, tail
		s.blocks--
	}
	return s, nil
}

// chunkBits is the largest chunk, as bits over the block size, that is all hole or all stored wherever it lies in a
// file of that many blocks: stored runs begin and end at its multiples, unless they end with the file.
func chunkBits(runs []tree.Run, fileBlocks uint64) int {
	bits := maxChunkBits
	for _, r := range runs {
		edges := r.FileBlock
		if end := r.FileBlock + r.Blocks; uint64(end) != fileBlocks {
			edges |= end
		}
		for bits > minChunkBits && edges&(1<<bits-1) != 0 {
			bits--
		}
	}
	return bits
}
