// Package backoff has the waits between attempts at something that failed for a reason that may pass.
package backoff

import "time"

// Doubling waits double from First up to Most.
type Doubling struct {
	First, Most time.Duration
}

// After is the wait after an attempt before which there were that many failures in a row: First after none.
func (d Doubling) After(failures int) time.Duration {
	wait := d.First
	for ; failures > 0 && wait < d.Most; failures-- {
		wait *= 2
	}
	return min(wait, d.Most)
}
