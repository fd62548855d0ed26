package stage

import (
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// layerTable finds layers by their digests over many disks: the cost of a look-up depends on neither the number of
// disks nor that of layers.
type layerTable struct {
	disks  map[*disk]bool
	chains map[digest.Digest][]located
	diffs  map[digest.Digest][]located
	blobs  map[digest.Digest][]located
}

// located is a layer on a disk. Lists of them are ordered by the disks' names.
type located struct {
	disk  *disk
	layer int
}

// choices is how many disks that have the same layer are compared. More would cost more than a better choice gains.
const choices = 8

func newLayerTable() layerTable {
	return layerTable{
		disks:  make(map[*disk]bool),
		chains: make(map[digest.Digest][]located),
		diffs:  make(map[digest.Digest][]located),
		blobs:  make(map[digest.Digest][]located),
	}
}

func (t *layerTable) add(d *disk) {
	t.disks[d] = true
	t.each(d, func(m map[digest.Digest][]located, dg digest.Digest, layer int) {
		at, _ := slices.BinarySearchFunc(m[dg], d, func(l located, d *disk) int {
			return strings.Compare(l.disk.rec.Spec.Name, d.rec.Spec.Name)
		})
		m[dg] = slices.Insert(m[dg], at, located{d, layer})
	})
}

func (t *layerTable) remove(d *disk) {
	if !t.disks[d] {
		return
	}
	delete(t.disks, d)
	t.each(d, func(m map[digest.Digest][]located, dg digest.Digest, _ int) {
		m[dg] = slices.DeleteFunc(m[dg], func(l located) bool { return l.disk == d })
		if len(m[dg]) == 0 {
			delete(m, dg)
		}
	})
}

func (t *layerTable) each(d *disk, do func(m map[digest.Digest][]located, dg digest.Digest, layer int)) {
	ix := d.lookup.Index()
	for _, l := range ix.Layers {
		if l.StackBound {
			continue // right on its own stack alone
		}
		do(t.diffs, l.DiffID, l.Number)
		for _, b := range l.Blobs {
			do(t.blobs, b.Digest, l.Number)
		}
	}
	for _, c := range ix.Chains {
		do(t.chains, c.ChainID, c.Layer)
	}
}

// find chooses the layer, by the widest digest that finds one. Of several disks it takes one that is in use rather than
// one that could leave, else the first by name, so that the same question has the same answer.
func (t *layerTable) find(q layerdisk.LayerName, inUse func(*disk) bool) (located, layerdisk.Match, bool) {
	for _, try := range []struct {
		match layerdisk.Match
		list  []located
	}{
		{layerdisk.MatchChainID, t.chains[q.ChainID]},
		{layerdisk.MatchDiffID, t.diffs[q.DiffID]},
		{layerdisk.MatchBlob, t.blobs[q.Blob]},
	} {
		if len(try.list) == 0 {
			continue
		}
		// At the bottom of a stack, where chain ID and diff ID are the same, what a layer removes leaves nothing, while
		// on others it hides names: the same layer from another stack is not the right one there.
		if try.match != layerdisk.MatchChainID && try.list[0].layerOf().DiffID == q.ChainID {
			continue
		}
		for _, l := range try.list[:min(len(try.list), choices)] {
			if inUse(l.disk) {
				return l, try.match, true
			}
		}
		return try.list[0], try.match, true
	}
	return located{}, "", false
}

// layerOf is the index's entry of a located layer.
func (l located) layerOf() layerdisk.Layer {
	return l.disk.lookup.Index().Layers[l.layer]
}
