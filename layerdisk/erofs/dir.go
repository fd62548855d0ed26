package erofs

import (
	"encoding/binary"
	"sort"

	"berth.dev/berth/layerdisk/tree"
)

// dirent is one entry of a directory to be written.
type dirent struct {
	name string
	nid  uint64
	kind byte
}

// names calls f for every name of a directory in the bytewise order in which the kernel searches, "." and ".."
// included; i is the index of the child, -1 for "." and -2 for "..".
func names(children []tree.Child, f func(name string, i int)) {
	dot := sort.Search(len(children), func(i int) bool { return children[i].Name > "." })
	dotdot := sort.Search(len(children), func(i int) bool { return children[i].Name > ".." })
	for i := 0; i <= len(children); i++ {
		if i == dot {
			f(".", -1)
		}
		if i == dotdot {
			f("..", -2)
		}
		if i < len(children) {
			f(children[i].Name, i)
		}
	}
}

// dirSize is the size of a directory in bytes: whole blocks, each with its entries first and then their names, and a
// rest.
func dirSize(children []tree.Child) uint64 {
	var blocks uint64
	used := 0
	names(children, func(name string, _ int) {
		need := direntSize + len(name)
		if used+need > blockSize {
			blocks++
			used = 0
		}
		used += need
	})
	return blocks*blockSize + uint64(used)
}

// appendDir appends a directory's contents as dirSize counts them, and not padded at the end.
func appendDir(b []byte, children []tree.Child, entry func(i int) (nid uint64, kind byte)) []byte {
	var block []dirent
	used := 0
	flush := func(pad bool) {
		start := len(b)
		off := len(block) * direntSize
		for _, d := range block {
			b = binary.LittleEndian.AppendUint64(b, d.nid)
			b = binary.LittleEndian.AppendUint16(b, uint16(off))
			b = append(b, d.kind, 0)
			off += len(d.name)
		}
		for _, d := range block {
			b = append(b, d.name...)
		}
		if pad {
			b = append(b, make([]byte, start+blockSize-len(b))...)
		}
		block, used = block[:0], 0
	}
	names(children, func(name string, i int) {
		if used+direntSize+len(name) > blockSize {
			flush(true)
		}
		nid, kind := entry(i)
		block = append(block, dirent{name: name, nid: nid, kind: kind})
		used += direntSize + len(name)
	})
	flush(false)
	return b
}
