package verify

import (
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/attrs"
)

// Report says what was found. It is complete: a finding in one layer does not keep the others from being verified.
type Report struct {
	Identity layerdisk.Identity `json:"identity"`
	// Problems of the disk as a whole, in words.
	Problems []string      `json:"problems,omitempty"`
	Layers   []LayerReport `json:"layers"`
}

// LayerReport is about one layer.
type LayerReport struct {
	Number int           `json:"number"`
	DiffID digest.Digest `json:"diff_id"`
	// Entries and UnpackedBytes that were found; hard links count as entries but their bytes once.
	Entries       int   `json:"entries"`
	UnpackedBytes int64 `json:"unpacked_bytes"`
	// Problems that are not about one entry of the tree, in words.
	Problems []string `json:"problems,omitempty"`
	// Differences between the stored listing and the tree.
	Differences []attrs.Difference `json:"differences,omitempty"`
}

// Findings is the number of problems and differences.
func (r *Report) Findings() int {
	n := len(r.Problems)
	for i := range r.Layers {
		n += r.Layers[i].Findings()
	}
	return n
}

// Findings is the number of problems and differences of the layer.
func (l *LayerReport) Findings() int { return len(l.Problems) + len(l.Differences) }
