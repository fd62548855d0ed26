package accesslist

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// mergeBlock is the grain of merging: what one read of a slow disk brings anyway (see docs/access-lists.md).
const mergeBlock = 64 << 10

// Merge makes one list of several of the same image and platform: what at least half of them have, in the order of the
// mean place at which they have it. Metadata is that of the disk of the newest list. No lists, or lists of different
// images, are errdefs.ErrInvalidArgument.
func Merge(lists ...*List) (*List, error) {
	merged, err := merge(lists)
	if err != nil {
		return nil, fmt.Errorf("merge access lists: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return merged, nil
}

func merge(lists []*List) (*List, error) {
	if len(lists) == 0 {
		return nil, errors.New("there are none")
	}
	newest := lists[0]
	for _, l := range lists {
		if l.Image != newest.Image || l.Platform != newest.Platform {
			return nil, fmt.Errorf("one is of %s (%s), another of %s (%s)", newest.Image, newest.Platform, l.Image, l.Platform)
		}
		if err := l.check(); err != nil {
			return nil, err
		}
		if l.Recorded.After(newest.Recorded) {
			newest = l
		}
	}
	merged := &List{Image: newest.Image, Platform: newest.Platform, Recorded: newest.Recorded, Disk: newest.Disk}
	files, metadata := newBallot[fileKey](), newBallot[struct{}]()
	disks := 0
	for i, l := range lists {
		ballots := &votes[fileKey]{ballot: files, number: i + 1}
		for _, f := range l.Files {
			ballots.add(fileKey{f.DiffID, f.Path}, f.Offset, f.Length)
		}
		ballots.close()
		if l.Disk != "" && l.Disk == newest.Disk {
			disks++
			ballots := &votes[struct{}]{ballot: metadata, number: i + 1}
			for _, r := range l.Metadata {
				ballots.add(struct{}{}, r.Offset, r.Length)
			}
			ballots.close()
		}
	}
	files.each((len(lists)+1)/2, func(k fileKey, offset, length int64) {
		merged.Files = append(merged.Files, FileRange{DiffID: k.diffID, Path: k.path, Offset: offset, Length: length})
	})
	metadata.each((disks+1)/2, func(_ struct{}, offset, length int64) {
		merged.Metadata = append(merged.Metadata, Range{Offset: offset, Length: length})
	})
	return merged, merged.check()
}

type fileKey struct {
	diffID digest.Digest
	path   string
}

// ballot counts, block by block of mergeBlock bytes, how many lists have a part of something named K, and where.
type ballot[K comparable] struct {
	blocks map[blockKey[K]]*block
	order  []blockKey[K] // by first mention, for a result that does not depend on the order of maps
}

type blockKey[K comparable] struct {
	of     K
	number int64
}

type block struct {
	from, to int64 // what the lists have of it, at least
	lists    int
	places   float64 // sum over the lists, each from 0 to 1
	last     int     // number of the last list that has it
}

func newBallot[K comparable]() *ballot[K] { return &ballot[K]{blocks: make(map[blockKey[K]]*block)} }

// votes of one list; number, counted from 1, tells it from the others.
type votes[K comparable] struct {
	*ballot[K]
	number int
	seen   []*block
}

func (v *votes[K]) add(of K, offset, length int64) {
	for n := offset / mergeBlock; n*mergeBlock < offset+length; n++ {
		from, to := max(offset, n*mergeBlock), min(offset+length, (n+1)*mergeBlock)
		key := blockKey[K]{of, n}
		b := v.blocks[key]
		if b == nil {
			b = &block{from: from, to: to}
			v.blocks[key] = b
			v.order = append(v.order, key)
		}
		b.from, b.to = min(b.from, from), max(b.to, to)
		if b.last == v.number {
			continue
		}
		b.last = v.number
		b.lists++
		v.seen = append(v.seen, b)
	}
}

func (v *votes[K]) close() {
	for i, b := range v.seen {
		b.places += float64(i) / float64(len(v.seen))
	}
}

// each gives what enough lists have, in order, neighbours joined.
func (b *ballot[K]) each(enough int, give func(of K, offset, length int64)) {
	keys := slices.DeleteFunc(b.order, func(k blockKey[K]) bool { return b.blocks[k].lists < enough })
	mean := func(k blockKey[K]) float64 { return b.blocks[k].places / float64(b.blocks[k].lists) }
	slices.SortStableFunc(keys, func(x, y blockKey[K]) int { return cmp.Compare(mean(x), mean(y)) })
	for i := 0; i < len(keys); {
		of, from, to := keys[i].of, b.blocks[keys[i]].from, b.blocks[keys[i]].to
		for i++; i < len(keys) && keys[i].of == of && b.blocks[keys[i]].from == to; i++ {
			to = b.blocks[keys[i]].to
		}
		give(of, from, to-from)
	}
}
