package snapshotter

import (
	"hash/maphash"
	"slices"
	"sync"
)

// index finds the snapshots with a given target label and parent without walking the store, which containerd's metadata
// store asks for on every layer that it need not fetch.
//
// It is a hint that never lacks anything: a snapshot is entered before its transaction is committed and struck out
// after its removal is, so it may name snapshots that do not exist (yet), and whoever asks looks each up in the store.
type index struct {
	mu    sync.Mutex // guards names
	seed  maphash.Seed
	names map[uint64][]string
}

func newIndex() *index {
	return &index{seed: maphash.MakeSeed(), names: make(map[uint64][]string)}
}

// slot may be shared by several pairs: the store has the last word anyway.
func (x *index) slot(ref, parent string) uint64 {
	var h maphash.Hash
	h.SetSeed(x.seed)
	// Writes to a maphash never fail.
	_, _ = h.WriteString(ref)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(parent)
	return h.Sum64()
}

// add enters a snapshot. Those without a target are never looked for.
func (x *index) add(ref, parent, name string) {
	if ref == "" {
		return
	}
	slot := x.slot(ref, parent)
	x.mu.Lock()
	defer x.mu.Unlock()
	if !slices.Contains(x.names[slot], name) {
		x.names[slot] = append(x.names[slot], name)
	}
}

func (x *index) remove(ref, parent, name string) {
	if ref == "" {
		return
	}
	slot := x.slot(ref, parent)
	x.mu.Lock()
	defer x.mu.Unlock()
	names := slices.DeleteFunc(x.names[slot], func(n string) bool { return n == name })
	if len(names) == 0 {
		delete(x.names, slot)
		return
	}
	x.names[slot] = names
}

// lookup returns candidates, in the order they were entered.
func (x *index) lookup(ref, parent string) []string {
	slot := x.slot(ref, parent)
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.names[slot])
}
