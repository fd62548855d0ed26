package walk

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSeedsAndSteps(t *testing.T) {
	for name, tc := range map[string]struct {
		seed, steps string
		seeds       []uint64
		each        int
	}{
		"neither": {seeds: []uint64{1, 2, 3}, each: 4},
		"seed":    {seed: "17", seeds: []uint64{17}, each: 4},
		"steps":   {steps: "20", seeds: []uint64{1, 2, 3, 4, 5}, each: 4},
		"few":     {steps: "3", seeds: []uint64{1}, each: 3},
		"both":    {seed: "17", steps: "20", seeds: []uint64{17}, each: 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(seedVariable, tc.seed)
			t.Setenv(stepsVariable, tc.steps)
			var seeds []uint64
			Run(t, 12*slowness, 4, func(w *Walk) {
				seeds = append(seeds, w.Seed)
				require.Equal(t, tc.each, w.Steps)
			})
			require.Equal(t, tc.seeds, seeds)
		})
	}
}
