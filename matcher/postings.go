package matcher

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/opencontainers/go-digest"
)

// key is the first half of a sha256 digest. 128 bits keep the index at half the memory of whole digests. Two different
// layers with the same key would need 2^64 hashes to be made on purpose, and all that they gain is that a disk gets attached
// for nothing: layers are served by their whole digest.
type key [16]byte

// digestKey is the key of a digest that checkDigest accepted; the second value is false for the empty digest.
func digestKey(d digest.Digest) (key, bool) {
	var k key
	if d == "" {
		return k, false
	}
	if isSHA256(d) {
		var text [2 * len(k)]byte
		copy(text[:], d[len(sha256Prefix):])
		if _, err := hex.Decode(k[:], text[:]); err == nil {
			return k, true
		}
	}
	return stringKey(string(d)), true
}

// stringKey is the key of anything that is not a sha256 digest itself.
func stringKey(s string) key {
	sum := sha256.Sum256([]byte(s))
	return key(sum[:len(key{})])
}

// posting says that an item (an image or a layer, by its position) of the candidate in a slot has some key.
type posting uint64

func newPosting(slot uint32, item int) posting {
	return posting(uint64(slot)<<32 | uint64(uint32(item)))
}

func (p posting) slot() uint32 { return uint32(p >> 32) }
func (p posting) item() int    { return int(uint32(p)) }

// postings finds the items that have a key. Most keys of a large fleet occur once, so a single posting stands in the map
// itself; neither keys nor values hold pointers, which spares the garbage collector a walk over millions of entries.
type postings struct {
	of    map[key]posting // a posting, or with bit listed set the number of a list
	lists [][]posting
	free  []uint32 // numbers of empty lists
}

// listed marks a number of a list. Slots stay below 1<<31, see Index.Put.
const listed posting = 1 << 63

func newPostings() postings { return postings{of: make(map[key]posting)} }

// find gives all items with the key. The result is valid until the next change; one is used for a single posting.
func (p *postings) find(k key, one *[1]posting) []posting {
	v, ok := p.of[k]
	switch {
	case !ok:
		return nil
	case v&listed != 0:
		return p.lists[v&^listed]
	}
	one[0] = v
	return one[:]
}

func (p *postings) add(k key, v posting) {
	old, ok := p.of[k]
	switch {
	case !ok:
		p.of[k] = v
	case old&listed != 0:
		p.lists[old&^listed] = append(p.lists[old&^listed], v)
	default:
		p.of[k] = listed | posting(p.newList(old, v))
	}
}

func (p *postings) newList(of ...posting) uint32 {
	if n := len(p.free); n > 0 {
		number := p.free[n-1]
		p.free = p.free[:n-1]
		p.lists[number] = of
		return number
	}
	p.lists = append(p.lists, of)
	return uint32(len(p.lists) - 1)
}

// remove takes out what add put in.
func (p *postings) remove(k key, v posting) {
	old, ok := p.of[k]
	if !ok {
		return
	}
	if old&listed == 0 {
		if old == v {
			delete(p.of, k)
		}
		return
	}
	number := uint32(old &^ listed)
	list := p.lists[number]
	i := slices.Index(list, v)
	if i < 0 {
		return
	}
	last := len(list) - 1
	list[i] = list[last]
	list = list[:last]
	if len(list) > 1 {
		p.lists[number] = list
		return
	}
	p.of[k] = list[0]
	p.lists[number] = nil
	p.free = append(p.free, number)
}
