package readahead

import (
	"sync"

	"berth.dev/berth/readahead/accesslist"
)

// pieceBytes is read at once. One readahead(2) reads no more than the largest request of the device (1,280 KiB for loop
// devices, often less; force_page_cache_ra in mm/readahead.c), and lets the rest fall; the smaller, the sooner a disk
// can be let go of.
const pieceBytes = 512 << 10

// piece of a list: of file number file of list.Files, or of the block device.
type piece struct {
	device         bool
	file           int
	offset, length int64
	// at is the number of its range, first says that it is the first piece of it.
	at    int
	first bool
}

// pieces of a list in order: the device, then the files. Many workers take them, each piece once.
type pieces struct {
	list *accesslist.List

	mu sync.Mutex // guards what follows
	// at is the range that the next piece is of, done what was taken of it.
	at   int
	done int64
}

func (p *pieces) next() (piece, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		metadata := len(p.list.Metadata)
		var next piece
		switch {
		case p.at < metadata:
			r := p.list.Metadata[p.at]
			next = piece{device: true, offset: r.Offset, length: r.Length}
		case p.at < metadata+len(p.list.Files):
			r := &p.list.Files[p.at-metadata]
			next = piece{file: p.at - metadata, offset: r.Offset, length: r.Length}
		default:
			return piece{}, false
		}
		if p.done >= next.length {
			p.at, p.done = p.at+1, 0
			continue
		}
		next.at, next.first = p.at, p.done == 0
		next.offset += p.done
		next.length = min(next.length-p.done, pieceBytes)
		p.done += next.length
		return next, true
	}
}

// skip the rest of the range that a piece is of: it is not there.
func (p *pieces) skip(of piece) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == of.at {
		p.at, p.done = of.at+1, 0
	}
}
