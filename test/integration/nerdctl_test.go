//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/berth"
)

// nerdctl pulls with the client's own code, which tells a snapshotter of a layer's chain ID and of nothing else; that
// is enough for a hit.
func TestNerdctl(t *testing.T) {
	n := newNode(t)
	p := n.push("full", n.fiveLayers()...)
	n.attachAtStart("d", n.build("d", p))
	n.start()
	nerdctl := func(args ...string) string {
		out, err := n.containerd.Nerdctl(n.Context(), berth.PluginName, args...)
		require.NoError(n, err)
		return strings.TrimSpace(out)
	}
	nerdctl("pull", p.ref)
	require.Zero(n, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	// The runc of the tests has no seccomp.
	require.Equal(n, "content of top", nerdctl("run", "--rm", "--net", "none", "--security-opt", "seccomp=unconfined", p.ref, "cat", "/s/top"))
	require.EqualValues(n, len(p.blobs), n.status().Adopted)

	nerdctl("rmi", p.ref)
	n.eventually("layers to be given back", func() error {
		if s := n.status(); s.Adopted != 0 {
			return fmt.Errorf("%d snapshots are adopted", s.Adopted)
		}
		return nil
	})
}
