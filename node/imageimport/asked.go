package imageimport

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// asked are the chains that containerd is being asked for. It is safe for concurrent use.
type asked struct {
	mu     sync.Mutex // guards chains, and is never held across anything that can wait
	chains map[digest.Digest]bool
}

// has says whether containerd is being asked for a chain just now: its question to the snapshotter is then no
// pull's.
func (a *asked) has(chain digest.Digest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.chains[chain]
}

// asking notes that containerd is asked for a chain, until the returned function is called.
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
