package erofs

import (
	"cmp"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk/tree"
)

// ownTree is the part of the file system that is not a layer: the root, the directories above layers and own files.
// A node may instead stand for the root of a layer.
type ownTree struct {
	nodes []ownNode
}

type ownNode struct {
	children []tree.Child
	kind     ownKind
	index    int // of the file or layer in the image
	size     int64
}

type ownKind int

const (
	ownDir ownKind = iota
	ownFile
	ownLayer
)

func newOwnTree(img *Image) (*ownTree, error) {
	t := &ownTree{nodes: []ownNode{{}}}
	for i, l := range img.Layers {
		if err := t.add(l.Path, ownNode{kind: ownLayer, index: i}); err != nil {
			return nil, err
		}
	}
	for i, f := range img.Files {
		if err := t.add(f.Path, ownNode{kind: ownFile, index: i, size: int64(len(f.Data))}); err != nil {
			return nil, err
		}
	}
	for i := range t.nodes {
		slices.SortFunc(t.nodes[i].children, func(a, b tree.Child) int { return cmp.Compare(a.Name, b.Name) })
	}
	return t, nil
}

func (t *ownTree) add(p string, node ownNode) error {
	if !fs.ValidPath(p) || p == "." || strings.Contains(p, "\x00") {
		return invalid("path %q is not a relative path", p)
	}
	dir, base := path.Split(p)
	at := tree.Root
	for c := range strings.SplitSeq(path.Clean(dir), "/") {
		if c == "." {
			continue
		}
		next, ok := t.lookup(at, c)
		if !ok {
			next = t.append(at, c, ownNode{})
		}
		if t.nodes[next].kind != ownDir {
			return invalid("path %q lies below a file or a layer", p)
		}
		at = next
	}
	if _, ok := t.lookup(at, base); ok {
		return invalid("path %q is used twice", p)
	}
	t.append(at, base, node)
	return nil
}

func (t *ownTree) append(dir tree.Number, name string, node ownNode) tree.Number {
	n := tree.Number(len(t.nodes))
	t.nodes = append(t.nodes, node)
	t.nodes[dir].children = append(t.nodes[dir].children, tree.Child{Name: name, Inode: n})
	return n
}

func (t *ownTree) lookup(dir tree.Number, name string) (tree.Number, bool) {
	for _, c := range t.nodes[dir].children {
		if c.Name == name {
			return c.Inode, true
		}
	}
	return 0, false
}

// Inode is part of treeLike. Own files and directories belong to root and are as old as time.
func (t *ownTree) Inode(n tree.Number) tree.Inode {
	node := &t.nodes[n]
	if node.kind == ownFile {
		return tree.Inode{Mode: unix.S_IFREG | 0o644, Nlink: 1, Size: node.size}
	}
	in := tree.Inode{Mode: unix.S_IFDIR | 0o755, Nlink: 2}
	for _, c := range node.children {
		if t.nodes[c.Inode].kind != ownFile {
			in.Nlink++
		}
	}
	return in
}

// Children is part of treeLike.
func (t *ownTree) Children(n tree.Number) []tree.Child { return t.nodes[n].children }

// Numbers is part of treeLike.
func (t *ownTree) Numbers() int { return len(t.nodes) }
