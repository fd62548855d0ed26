package recorder

import (
	"golang.org/x/sys/unix"
)

const (
	// joinGap joins parts with so little between them: reading it costs less than another request.
	joinGap = 64 << 10
	// maxPart is where a part ends, so that what is read later of a large file stands later in the list.
	maxPart = 512 << 10
	// recentParts of each file are looked at for joining: a program reads few places of a file in turn.
	recentParts = 4
)

// parts collects pages into parts, in the order of their first pages.
type parts struct {
	list   []part
	recent map[uint64][]int // indexes into list, per inode
}

// add notes that a piece of a file came into the page cache.
func (p *parts) add(inode uint64, offset, length int64) {
	if p.recent == nil {
		p.recent = make(map[uint64][]int)
	}
	recent := p.recent[inode]
	for i := len(recent) - 1; i >= 0; i-- {
		if p.list[recent[i]].join(offset, length) {
			return
		}
	}
	if len(recent) == recentParts {
		recent = append(recent[:0], recent[1:]...)
	}
	p.recent[inode] = append(recent, len(p.list))
	p.list = append(p.list, part{inode: inode, offset: offset, length: length})
}

// join takes in a piece near the part if the whole is not too large.
func (p *part) join(offset, length int64) bool {
	from, to := min(p.offset, offset), max(p.offset+p.length, offset+length)
	if offset > p.offset+p.length+joinGap || offset+length+joinGap < p.offset || to-from > maxPart {
		return false
	}
	p.offset, p.length = from, to-from
	return true
}

func pageSize() int64 { return int64(unix.Getpagesize()) }
