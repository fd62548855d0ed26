package erofs

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/tree"
)

// visitor gets every inode once, in the order of the disk.
type visitor func(src *source, n tree.Number, parent uint64, in *tree.Inode) error

// walk visits the inodes in their order on the disk: first the root and the other directories of our own with the layer
// roots among them, level by level, so that whatever a mount and an overlay touch lies together; then our own files;
// then layer by layer the inodes of each directory together, before those of its subdirectories. parent is the nid of
// the directory that first named the inode; it is only right once slots are set, which the first walk does.
func (l *Layout) walk(visit visitor) error {
	type place struct {
		n      tree.Number
		parent tree.Number
	}
	own := l.sources[0]
	var files []place
	for queue := []place{{}}; len(queue) > 0; queue = queue[1:] {
		p := queue[0]
		node := &l.own.nodes[p.n]
		src, n := own, p.n
		switch node.kind {
		case ownFile:
			files = append(files, p)
			continue
		case ownLayer:
			src, n = l.sources[1+node.index], tree.Root
		case ownDir:
			for _, c := range node.children {
				queue = append(queue, place{n: c.Inode, parent: p.n})
			}
		}
		in := src.Inode(n)
		if err := visit(src, n, uint64(own.slots[p.parent]), &in); err != nil {
			return fmt.Errorf("place /: %w", err)
		}
	}
	for _, p := range files {
		in := own.Inode(p.n)
		if err := visit(own, p.n, uint64(own.slots[p.parent]), &in); err != nil {
			return fmt.Errorf("place own file: %w", err)
		}
	}
	for i, src := range l.sources[1:] {
		if err := src.walk(visit); err != nil {
			return fmt.Errorf("place layer %s: %w", l.img.Layers[i].Path, err)
		}
	}
	return nil
}

// walk visits the inodes of a layer but its root.
func (s *source) walk(visit visitor) error {
	seen := make([]uint64, (len(s.slots)+63)/64) // only for hard links
	var dirs []tree.Number
	for todo := []tree.Number{tree.Root}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		dirs = dirs[:0]
		for _, c := range s.Children(dir) {
			in := s.Inode(c.Inode)
			if in.Mode&unix.S_IFMT == unix.S_IFDIR {
				dirs = append(dirs, c.Inode)
			} else if in.Nlink > 1 {
				if seen[c.Inode/64]&(1<<(c.Inode%64)) != 0 {
					continue
				}
				seen[c.Inode/64] |= 1 << (c.Inode % 64)
			}
			if err := visit(s, c.Inode, uint64(s.slots[dir]), &in); err != nil {
				return fmt.Errorf("%q: %w", c.Name, err)
			}
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			todo = append(todo, dirs[i])
		}
	}
	return nil
}

// place gives every inode its slot and counts.
func (l *Layout) place() error {
	// Slot 0 stays free: inode number 0 means "deleted" to some readers of directories.
	cursor := uint64(inodeSize)
	err := l.walk(func(src *source, n tree.Number, _ uint64, in *tree.Inode) error {
		s, err := shapeOf(in, src.Children(n))
		if err != nil {
			return err
		}
		cursor = startOf(cursor, &s)
		if cursor/slotSize > math.MaxUint32 {
			return fmt.Errorf("inodes take more than 128 GiB: %w", ErrTooBig)
		}
		src.slots[n] = uint32(cursor / slotSize)
		cursor += uint64(s.total())
		l.inodes++
		l.dirBlocks += s.blocks
		if s.layout == layoutChunks {
			l.holes++
		}
		return nil
	})
	l.metaBytes = cursor
	l.rootSlot = l.sources[0].slots[tree.Root]
	return err
}

// startOf returns where the next inode begins if cursor is the end of the one before. An inode with what lies behind it
// does not cross a block if it fits one; the inode proper never does.
func startOf(cursor uint64, s *shape) uint64 {
	cursor = (cursor + slotSize - 1) &^ (slotSize - 1)
	whole := uint64(s.total())
	if whole > blockSize {
		whole = inodeSize
	}
	if cursor%blockSize+whole > blockSize {
		cursor = (cursor + blockSize - 1) &^ (blockSize - 1)
	}
	return cursor
}
