//go:build !race

package walk

const slowness = 1
