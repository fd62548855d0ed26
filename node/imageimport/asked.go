package imageimport

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// asked holds the chains that berthd is asking containerd for. It is safe for concurrent use.
type asked struct {
	mu     sync.Mutex // guards chains, and is never held across anything that can wait
	chains map[digest.Digest]bool
}

// has reports whether berthd is asking containerd for a chain just now: containerd's question to the snapshotter then
// does not come from a pull.
func (a *asked) has(chain digest.Digest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.chains[chain]
}

// asking notes that berthd is asking containerd for a chain, until the returned function is called.
func (a *asked) asking(chain digest.Digest) (done func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.chains[chain] = true
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.chains, chain)
	}
}
