package builder

import (
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/tree"
)

// diskLayer is a layer directory of the disk. Nearly always there is one for each layerJob. A layer that leaves out
// directories it puts files into looks different on different stacks; it gets a directory for each look, and all of
// them share the contents of its files.
type diskLayer struct {
	*layerJob
	tree *tree.Tree
}

// stack lists the layers of the disk, the first look of each job under the job's number, and every chain once, parents
// before children. All jobs must be done.
func (p *plan) stack() {
	p.layers = make([]*diskLayer, len(p.jobs))
	jobs := make(map[digest.Digest]*layerJob, len(p.jobs))
	for _, j := range p.jobs {
		jobs[j.diffID] = j
	}
	looks := make(map[*layerJob][]int)
	layerOf := make(map[digest.Digest]int) // by chain ID
	for _, img := range p.images {
		var lower []*tree.Tree // from the top
		chainID := digest.Digest("")
		chainIDs := img.chainIDs()
		for i, l := range img.layers {
			c := layerdisk.Chain{ChainID: chainIDs[i], Parent: chainID, DiffID: l.diffID}
			chainID = c.ChainID
			number, known := layerOf[chainID]
			if !known {
				number = p.look(looks, jobs[l.diffID], chainID, lower)
				layerOf[chainID] = number
				c.Layer = number
				p.chains = append(p.chains, c)
			}
			lower = append([]*tree.Tree{p.layers[number].tree}, lower...)
		}
	}
}

// look finds or makes the layer that the job's is on top of the lower trees.
func (p *plan) look(looks map[*layerJob][]int, j *layerJob, chainID digest.Digest, lower []*tree.Tree) int {
	l := &diskLayer{layerJob: j}
	fits := func(t *tree.Tree) bool { return t.Fits(lower) }
	if j.reuse != nil && j.tree.StackBound() {
		// Which look is right was found out when it was made.
		l.tree = j.reuse.trees[j.reuse.base.layerOf[chainID]]
		fits = func(t *tree.Tree) bool { return t == l.tree }
	}
	for _, number := range looks[j] {
		if fits(p.layers[number].tree) {
			return number
		}
	}
	if l.tree == nil {
		l.tree = j.tree.On(lower)
	}
	number := j.number
	if len(looks[j]) == 0 {
		p.layers[number] = l
	} else {
		number = len(p.layers)
		p.layers = append(p.layers, l)
	}
	looks[j] = append(looks[j], number)
	return number
}
