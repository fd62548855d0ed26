//go:build race

package walk

// slowness is how much fewer steps are gone with the race detector, which makes each many times slower.
const slowness = 10
