package builder

import (
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/tree"
)

// diskLayer is a layer directory of the disk. Nearly always there is one for each layerJob. A layer that leaves out
// directories it puts files into looks different on different stacks, and one that removes names looks different at the
// bottom; it gets a directory for each look, and all of them share the contents of its files.
type diskLayer struct {
	*layerJob
	tree *tree.Tree
	// bound says that the layer is right on its own stack alone.
	bound bool
	// lower are the numbers of the layers that it was put on, from the top.
	lower []int
}

// stacker lists the layers of a disk.
type stacker struct {
	jobs map[digest.Digest]*layerJob
	// looks of a job, by their numbers.
	looks   map[*layerJob][]int
	layerOf map[digest.Digest]int // by chain ID
	layers  []*diskLayer
	chains  []layerdisk.Chain
	// order is that in which layers were found, lower ones before those on them.
	order []int
}

// stack lists the layers of the disk, the first look of each job under the job's number, and every chain once, parents
// before children. All jobs must be done.
func (p *plan) stack() error {
	s := stacker{
		jobs: make(map[digest.Digest]*layerJob, len(p.jobs)), looks: make(map[*layerJob][]int),
		layerOf: make(map[digest.Digest]int), layers: make([]*diskLayer, len(p.jobs)),
	}
	for _, j := range p.jobs {
		s.jobs[j.diffID] = j
	}
	for _, img := range p.images {
		if err := s.image(img); err != nil {
			return err
		}
	}
	for _, numbers := range s.looks {
		for _, n := range numbers {
			s.layers[n].bound = len(numbers) > 1 || s.layers[n].tree.StackBound()
		}
	}
	p.layers, p.chains, p.order = s.layers, s.chains, s.order
	return nil
}

func (s *stacker) image(img *image) error {
	var lower []int // from the top
	chainID := digest.Digest("")
	chainIDs := img.chainIDs()
	for i, l := range img.layers {
		c := layerdisk.Chain{ChainID: chainIDs[i], Parent: chainID, DiffID: l.diffID}
		chainID = c.ChainID
		number, known := s.layerOf[chainID]
		if !known {
			var err error
			if number, err = s.look(s.jobs[l.diffID], chainID, lower); err != nil {
				return err
			}
			s.layerOf[chainID] = number
			c.Layer = number
			s.chains = append(s.chains, c)
		}
		lower = append([]int{number}, lower...)
	}
	return nil
}

// look finds or makes the layer that the job's is on top of the lower ones.
func (s *stacker) look(j *layerJob, chainID digest.Digest, lower []int) (int, error) {
	for _, number := range s.looks[j] {
		have := s.layers[number]
		if !have.tree.StackBound() && (j.reuse != nil || !j.layer.Whiteouts() || (len(have.lower) > 0) == (len(lower) > 0)) {
			return number, nil
		}
	}
	t, err := s.tree(j, chainID, lower)
	if err != nil {
		return 0, j.explain(err)
	}
	for _, number := range s.looks[j] {
		if have := s.layers[number].tree; have == t || j.reuse == nil && have.Same(t) {
			return number, nil
		}
	}
	number := j.number
	if len(s.looks[j]) > 0 {
		number = len(s.layers)
		s.layers = append(s.layers, nil)
	}
	s.layers[number] = &diskLayer{layerJob: j, tree: t, lower: lower}
	s.looks[j] = append(s.looks[j], number)
	s.order = append(s.order, number)
	return number, nil
}

func (s *stacker) tree(j *layerJob, chainID digest.Digest, lower []int) (*tree.Tree, error) {
	if j.reuse != nil {
		return j.reuse.tree(chainID), nil
	}
	trees := make([]*tree.Tree, len(lower))
	for i, number := range lower {
		trees[i] = s.layers[number].tree
	}
	return j.layer.On(trees)
}
