package snapshotter_test

import (
	"fmt"
	"maps"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/snapshotter"
)

// TestSpoofedLabels: whatever a manifest says about its layers, they are served from a disk only if the chain ID, which
// is a digest over the real ones, says the same.
func TestSpoofedLabels(t *testing.T) {
	victim := forge(t, "victim", nil, tarOf(t, entry{name: "secret", body: "secret\n"}), tarOf(t, entry{name: "upper", body: "upper\n"}))
	tars := [][]byte{tarOf(t, entry{name: "mine", body: "mine\n"}), tarOf(t, entry{name: "also", body: "mine\n"})}
	v := victim.layers
	want := stockTree(t, forge(t, "evil", nil, tars...))
	for name, labels := range map[string]map[string]string{
		"diff ID of the lowest":   {"containerd.io/snapshot/diff-id": v[0].diffID.String()},
		"diff ID of another":      {"containerd.io/snapshot/diff-id": v[1].diffID.String()},
		"blob":                    {"containerd.io/snapshot/cri.layer-digest": v[0].blobID.String()},
		"parent and diff ID":      {"containerd.io/snapshot/diff-id": v[1].diffID.String(), "containerd.io/snapshot/parent-chain-id": v[1].below.String()},
		"all":                     {"containerd.io/snapshot/diff-id": v[1].diffID.String(), "containerd.io/snapshot/parent-chain-id": v[1].below.String(), "containerd.io/snapshot/cri.layer-digest": v[1].blobID.String()},
		"target":                  {"containerd.io/snapshot.ref": v[0].chainID.String()},
		"our own record":          {"berth.dev/adopted": `{"holder":"x","disk":"y","layer":0}`},
		"our own mark":            {"berth.dev/apart": "true"},
		"nonsense":                {"containerd.io/snapshot/diff-id": "../../etc", "containerd.io/snapshot/cri.layer-digest": "sha256:short", "containerd.io/snapshot/parent-chain-id": "sha256:"},
		"owner of the files":      {"containerd.io/snapshot/uidmapping": "0:12345:65536", "containerd.io/snapshot/gidmapping": "0:12345:65536"},
		"place of the upperdir":   {"containerd.io/snapshot/overlay.upperdir": "/etc"},
		"image reference with NL": {"containerd.io/snapshot/cri.image-ref": "a\nb"},
	} {
		for _, how := range []pulling{{}, {parallel: 2, rebase: true}} {
			t.Run(fmt.Sprintf("%s/parallel %d", name, how.parallel), func(t *testing.T) {
				t.Parallel()
				evil := forge(t, "evil", func(int) map[string]string { return maps.Clone(labels) }, tars...)
				n := newNode(t, snapshotter.Config{}, victim.layers)
				if how.parallel == 0 {
					// 2.2 and before pass on all that the manifest says.
					old := pulling{namespace: "old"}
					fetched, err := before23.pull(t, n.stack, evil, old, labels)
					require.NoError(t, err)
					require.Len(t, fetched, 2)
					n.requireTree(t, want, evil, old)
				}
				require.Len(t, n.mustPull(t, evil, how), 2)
				n.requireTree(t, want, evil, how)
				adopted, err := n.berth.Adopted(t.Context())
				require.NoError(t, err)
				require.Empty(t, adopted)
				require.Empty(t, n.source.holders())
			})
		}
	}
}

// TestChainIDAsDiffID: an image may claim that the diff ID of its only layer is what is really the chain ID of two
// layers of another. The upper one of those must not become a root file system by itself.
func TestChainIDAsDiffID(t *testing.T) {
	victim := forge(t, "victim", nil, tarOf(t, entry{name: "lower", body: "l\n"}), tarOf(t, entry{name: "upper", body: "u\n"}))
	target := victim.top()
	for _, labels := range []map[string]string{
		{"containerd.io/snapshot/diff-id": target.String()},
		{"containerd.io/snapshot/diff-id": target.String(), "containerd.io/snapshot/parent-chain-id": victim.layers[0].chainID.String()},
		{},
		{"containerd.io/snapshot/diff-id": victim.layers[1].diffID.String(), "containerd.io/snapshot/parent-chain-id": victim.layers[0].chainID.String()},
	} {
		for _, protocol := range []snapshotter.Protocol{snapshotter.ProtocolAuto, snapshotter.ProtocolSequential, snapshotter.ProtocolEarlyMounts} {
			n := newNode(t, snapshotter.Config{Protocol: protocol}, victim.layers)
			ctx := pulling{}.context(t)
			all := maps.Clone(labels)
			all["containerd.io/snapshot.ref"] = target.String()
			key := "extract-1 " + target.String()
			_, err := n.meta.Prepare(ctx, key, "", snapshots.WithLabels(all))
			require.NoError(t, err, "neither served nor refused")
			// The last set of labels is the truth about the victim, so staging is right; a lowest layer it is not.
			if err := n.meta.Commit(ctx, target.String(), key, snapshots.WithLabels(all)); err != nil {
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
				require.NoError(t, n.meta.Remove(ctx, key))
				n.collect(t)
			}
			adopted, err := n.berth.Adopted(t.Context())
			require.NoError(t, err)
			require.Empty(t, adopted)
			n.requireConsistent(t)
		}
	}
}

// TestLyingSource: a source whose answer does not make up the chain is not believed either.
func TestLyingSource(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	for name, lie := range map[string]func(*snapshotter.HeldLayer){
		"another layer":      func(h *snapshotter.HeldLayer) { h.DiffID = digest.FromString("another") },
		"no diff ID":         func(h *snapshotter.HeldLayer) { h.DiffID = "" },
		"broken diff ID":     func(h *snapshotter.HeldLayer) { h.DiffID = "sha256:12" },
		"no directory":       func(h *snapshotter.HeldLayer) { h.Dir += "/nothing" },
		"relative directory": func(h *snapshotter.HeldLayer) { h.Dir = "l/0" },
		"mount option":       func(h *snapshotter.HeldLayer) { h.Dir += ",upperdir=/etc" },
		"two directories":    func(h *snapshotter.HeldLayer) { h.Dir += ":/etc" },
		"a file":             func(h *snapshotter.HeldLayer) { h.Dir = "/etc/passwd" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, snapshotter.Config{}, im.layers)
			n.source.lie = lie
			require.Len(t, n.mustPull(t, im, pulling{}), len(im.layers))
			require.Empty(t, n.source.holders(), "what is refused is released")
			_, misses := n.seen.take()
			require.Len(t, misses, len(im.layers))
			for _, m := range misses {
				require.False(t, errdefs.IsNotFound(m.Err), "something is wrong: %v", m.Err)
			}
		})
	}
}

// TestMatches: by chain ID, by diff ID on a disk that has the layer in another stack, and by blob.
func TestMatches(t *testing.T) {
	shared := tarOf(t, entry{name: "shared", body: "shared\n"})
	built := forge(t, "built", nil, tarOf(t, entry{name: "base", body: "1\n"}), shared)
	other := func(annotate func(int) map[string]string) *image {
		return forge(t, "other", annotate, tarOf(t, entry{name: "base", body: "2\n"}), shared)
	}
	t.Run("diff ID", func(t *testing.T) {
		n, im := newNode(t, snapshotter.Config{}, built.layers), other(nil)
		n.mustPull(t, im, pulling{})
		hits, misses := n.seen.take()
		require.Len(t, misses, 1)
		require.Len(t, hits, 1)
		require.Equal(t, layerdisk.MatchDiffID, hits[0].MatchedBy)
		require.Equal(t, int64(len(built.layers[1].blob)), hits[0].BlobSize)
		require.Equal(t, snapshotter.LayerRequest{LayerName: layerdisk.LayerName{
			ChainID: im.top(), ParentChainID: im.layers[0].chainID, DiffID: im.layers[1].diffID,
		}}, hits[0].Layer)
		n.requireTree(t, stockTree(t, im), im, pulling{})
	})
	t.Run("blob", func(t *testing.T) {
		im := other(nil)
		n := newNode(t, snapshotter.Config{}, built.layers)
		// containerd 2.2 with CRI's annotations switched on; the label of layer 0 fits none.
		labels := map[string]string{
			"containerd.io/snapshot/cri.layer-digest": im.layers[1].blobID.String(), "containerd.io/snapshot/cri.image-ref": "reg/other:1",
		}
		fetched, err := before23.pull(t, n.stack, im, pulling{}, labels)
		require.NoError(t, err)
		require.Len(t, fetched, 1)
		hits, _ := n.seen.take()
		require.Len(t, hits, 1)
		require.Equal(t, layerdisk.MatchBlob, hits[0].MatchedBy)
		require.Equal(t, "reg/other:1", hits[0].Layer.ImageRef)
		require.Empty(t, hits[0].Layer.DiffID)
		n.requireTree(t, stockTree(t, im), im, pulling{})
	})
	t.Run("only for extraction", func(t *testing.T) {
		n := newNode(t, snapshotter.Config{}, built.layers)
		ref := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": built.layers[0].chainID.String()})
		for _, key := range []string{
			"sandbox", "extract-1 " + built.layers[1].chainID.String(), "extract-" + built.layers[0].chainID.String(),
			"x-extract-1 " + built.layers[0].chainID.String(),
		} {
			_, err := n.meta.Prepare(pulling{}.context(t), key, "", ref)
			require.NoError(t, err, "a pod's annotations reach the labels of its sandbox")
		}
		require.Empty(t, n.source.requests)
	})
	t.Run("a parent that says nothing", func(t *testing.T) {
		n := newNode(t, snapshotter.Config{}, built.layers)
		ctx := pulling{}.context(t)
		_, err := n.berth.Prepare(ctx, "a", "")
		require.NoError(t, err)
		require.NoError(t, n.berth.Commit(ctx, "mystery", "a"))
		_, err = n.berth.Prepare(ctx, "extract-1 "+built.top().String(), "mystery",
			snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": built.top().String()}))
		require.NoError(t, err)
		_, misses := n.seen.take()
		require.Len(t, misses, 1)
		require.ErrorIs(t, misses[0].Err, errdefs.ErrFailedPrecondition)
	})
	t.Run("a parent unpacked by a client that sets no labels", func(t *testing.T) {
		n := newNode(t, snapshotter.Config{}, built.layers)
		ctx := pulling{}.context(t)
		_, err := n.meta.Prepare(ctx, "a", "")
		require.NoError(t, err)
		require.NoError(t, n.meta.Commit(ctx, built.layers[0].chainID.String(), "a"))
		_, err = n.meta.Prepare(ctx, "extract-1 "+built.top().String(), built.layers[0].chainID.String(),
			snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": built.top().String()}))
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	})
	require.Equal(t, built.top(), identity.ChainID([]digest.Digest{built.layers[0].diffID, built.layers[1].diffID}))
}
