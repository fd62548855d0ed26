package matcher

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/opencontainers/go-digest"
)

// key is the first half of a sha256 digest. 128 bits keep the index at half the memory of whole digests. Two different
// layers with the same key would need 2^64 hashes to be made on purpose, and all that they gain is that a disk gets
// attached for nothing: layers are served by their whole digest.
type key [16]byte

// digestKey is the key of a digest, whose form checkDigest has looked at already; the second value is false for the
// empty digest. What is no digest has a key too, one that nothing else has.
func digestKey(d digest.Digest) (key, bool) {
	var k key
	if d == "" {
		return k, false
	}
	if len(d) == len(sha256Prefix)+64 && d[:len(sha256Prefix)] == sha256Prefix {
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

// few is a set of numbers below 1<<31 that mostly has one member: that number itself, or with the top bit set the place
// of a list. It holds no pointer, so that the garbage collector need not walk over millions of them.
type few uint32

const (
	listed few = 1 << 31
	// maxNumber is the first number that does not fit.
	maxNumber = 1 << 31
)

// lists are the lists of sets with several members.
type lists struct {
	of   [][]uint32
	free []uint32 // places without a list
}

// members returns all of a set that is not empty. The result is valid until the next change; one backs a single member.
func (l *lists) members(f few, one *[1]uint32) []uint32 {
	if f&listed != 0 {
		return l.of[f&^listed]
	}
	one[0] = uint32(f)
	return one[:]
}

// with adds a member that the set does not have.
func (l *lists) with(f few, n uint32) few {
	if f&listed != 0 {
		at := f &^ listed
		l.of[at] = append(l.of[at], n)
		return f
	}
	list := []uint32{uint32(f), n}
	if last := len(l.free) - 1; last >= 0 {
		at := l.free[last]
		l.free = l.free[:last]
		l.of[at] = list
		return listed | few(at)
	}
	l.of = append(l.of, list)
	return listed | few(len(l.of)-1)
}

// without removes a member. The second value reports whether the set is empty afterwards.
func (l *lists) without(f few, n uint32) (few, bool) {
	if f&listed == 0 {
		return f, uint32(f) == n
	}
	at := f &^ listed
	list := l.of[at]
	i := slices.Index(list, n)
	if i < 0 {
		return f, false
	}
	last := len(list) - 1
	list[i] = list[last]
	if last > 1 {
		l.of[at] = list[:last]
		return f, false
	}
	l.of[at] = nil
	l.free = append(l.free, uint32(at))
	return few(list[0]), false
}

// keyed finds numbers by key.
type keyed struct {
	sets  map[key]few
	lists lists
}

func (k *keyed) find(by key, one *[1]uint32) []uint32 {
	f, ok := k.sets[by]
	if !ok {
		return nil
	}
	return k.lists.members(f, one)
}

func (k *keyed) add(by key, n uint32) {
	if k.sets == nil {
		k.sets = make(map[key]few)
	}
	f, ok := k.sets[by]
	if !ok {
		k.sets[by] = few(n)
		return
	}
	k.sets[by] = k.lists.with(f, n)
}

func (k *keyed) remove(by key, n uint32) {
	f, ok := k.sets[by]
	if !ok {
		return
	}
	f, empty := k.lists.without(f, n)
	if empty {
		delete(k.sets, by)
		return
	}
	k.sets[by] = f
}
