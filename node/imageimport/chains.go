package imageimport

import (
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// chainsOf returns a chain of a disk and all chains below it.
func chainsOf(ix *layerdisk.Index, chain digest.Digest) []digest.Digest {
	parents := make(map[digest.Digest]digest.Digest, len(ix.Chains))
	for _, c := range ix.Chains {
		parents[c.ChainID] = c.Parent
	}
	var list []digest.Digest
	for ; chain != ""; chain = parents[chain] {
		list = append(list, chain)
	}
	return list
}

// rests reports whether the chain or one below it is among the given ones.
func rests(ix *layerdisk.Index, chain digest.Digest, among map[digest.Digest]bool) bool {
	for _, c := range chainsOf(ix, chain) {
		if among[c] {
			return true
		}
	}
	return false
}
