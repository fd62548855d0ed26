package builder

import (
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/tree"
)

// diskLayer is a layer directory of the disk. Nearly always there is one for each layerJob. A layer that leaves out
// directories it puts files into looks different on different stacks; it gets a directory for each look, and all of them
// share the contents of its files.
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
		for _, l := range img.layers {
			c := layerdisk.Chain{Parent: chainID, DiffID: l.diffID}
			c.ChainID = l.diffID
			if chainID != "" {
				c.ChainID = identity.ChainID([]digest.Digest{chainID, l.diffID})
			}
			chainID = c.ChainID
			number, known := layerOf[chainID]
			if !known {
				number = p.look(looks, jobs[l.diffID], lower)
				layerOf[chainID] = number
				c.Layer = number
				p.chains = append(p.chains, c)
			}
			lower = append([]*tree.Tree{p.layers[number].tree}, lower...)
		}
	}
}

// look finds or makes the layer that the job's is on top of the lower trees.
func (p *plan) look(looks map[*layerJob][]int, j *layerJob, lower []*tree.Tree) int {
	for _, number := range looks[j] {
		if p.layers[number].tree.Fits(lower) {
			return number
		}
	}
	l := &diskLayer{layerJob: j, tree: j.tree.On(lower)}
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
