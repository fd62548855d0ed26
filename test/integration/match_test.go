//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/image"
)

// matchView is what the tests read of "berth match --json".
type matchView struct {
	Outcome string `json:"outcome"`
	Chosen  []struct {
		Name     string `json:"name"`
		Attached bool   `json:"attached"`
	} `json:"chosen"`
	NothingMatched bool `json:"nothing_matched"`
	Candidates     []struct {
		Name    string `json:"name"`
		Verdict string `json:"verdict"`
		Why     string `json:"why"`
	} `json:"candidates"`
}

// foretell what a pull would choose.
func (n *node) foretell(p pushed, flags ...string) (v matchView) {
	n.Helper()
	args := append([]string{"match", p.ref, "--json", "--containerd-address", n.containerd.Socket(), "--namespace", n.containerd.Config().Namespace},
		append(flags, n.registryFlags(p.ref)...)...)
	require.NoError(n, json.Unmarshal([]byte(n.cli(args...)), &v))
	return v
}

func (v matchView) chosen() []string {
	var names []string
	for _, c := range v.Chosen {
		names = append(names, c.Name)
	}
	return names
}

func (v matchView) verdicts() map[string]string {
	all := map[string]string{}
	for _, c := range v.Candidates {
		all[c.Name] = berth.Word("MATCH_VERDICT", c.Verdict)
	}
	return all
}

// "berth match" foretells what a pull then does, by all catalogs that the node has: its own store and a directory. What
// may not be used is named with its reason (C-3).
func TestMatchForetellsThePull(t *testing.T) {
	n := newNode(t)
	own, shared, none := n.push("own", n.fiveLayers()...), n.push("shared", small("base"), small("shared")), n.push("none", small("none"))
	disk, others := n.build("shared", shared), n.build("none", none)
	n.withCatalog(soon, 0)
	n.publish("shared", disk, byPath(disk))
	created := time.Now()
	for name, e := range map[string]catalog.Entry{
		"expired":   {State: catalog.StateAvailable, Source: byPath(others), Expires: created},
		"updating":  {State: "Updating", Source: byPath(others)},
		"elsewhere": {State: catalog.StateAvailable, Source: catalog.Source{Driver: "cloud", VolumeSnapshotID: "s"}},
	} {
		e.Name, e.ID, e.Created = name, name, created
		n.publishEntry(others, e)
	}
	n.start()
	n.cli(append([]string{"image-snapshot", "create", "nightly", "--image", own.ref, "--wait"}, n.registryFlags(own.ref)...)...)
	n.beginHeldBuild("making", none)

	refused := n.foretell(none, "--names-only") // the registry keeps everybody waiting
	require.Equal(t, "MATCH_OUTCOME_PULL", refused.Outcome)
	require.True(t, refused.NothingMatched)
	require.Equal(t, map[string]string{"expired": "expired", "updating": "not-ready", "elsewhere": "unreachable", "making": "not-ready"}, refused.verdicts())
	for _, c := range refused.Candidates {
		if c.Name == "making" {
			require.Contains(t, c.Why, "Creating")
		}
	}
	n.cli("image-snapshot", "delete", "making", "--wait")
	n.registry.Resume()
	require.True(t, n.foretell(none).NothingMatched)
	require.Equal(t, []string{"nightly"}, n.foretell(own).chosen())
	require.Equal(t, []string{"shared"}, n.foretell(shared).chosen())
	require.Empty(t, n.attached(), "asking attaches nothing")

	for _, c := range []struct {
		image    pushed
		fetched  int
		attached []string
	}{{none, len(none.blobs), nil}, {own, 0, []string{"nightly"}}, {shared, 0, []string{"nightly", "shared"}}} {
		n.registry.Reset()
		n.pull(c.image)
		require.Equal(t, c.fetched, n.fetched(c.image), c.image.ref)
		require.ElementsMatch(t, c.attached, n.attached())
	}
	again := n.foretell(shared)
	require.True(t, again.Chosen[0].Attached)
	require.Empty(t, n.foretell(shared, "--present").chosen(), "containerd has all of it")
}

// Requirements 3.2: while an image snapshot is built anew the old content serves if the node says so, and the literal
// rule is that only Available ones do. The switch comes when the new content is complete.
func TestOldContentDuringUpdate(t *testing.T) {
	for name, old := range map[string]bool{"serve_old_during_update": true, "only Available": false} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", "one")}})
			n.configure = func(c *berth.Config) { c.ImageSnapshots = fmt.Sprintf("serve_old_during_update = %t", old) }
			n.start()
			flags := n.registryFlags(p.ref)
			n.cli(append([]string{"image-snapshot", "create", "nightly", "--image", p.ref, "--reuse-layers=false", "--wait"}, flags...)...)
			before, err := n.snapshot("nightly")
			require.NoError(t, err)
			n.registry.Reset()
			n.registry.Hold()
			n.cli("image-snapshot", "update", "nightly", "--rebuild")
			n.awaitSnapshot("nightly", "UPDATING")
			verdict := n.foretell(p, "--names-only").verdicts()["nightly"]
			if !old {
				require.Equal(t, "not-ready", verdict)
			} else {
				require.Equal(t, "chosen", verdict)
			}
			n.registry.Resume()
			after := n.awaitSnapshot("nightly", "AVAILABLE")
			require.NotEqual(t, before.Status.VolumeSnapshotID, after.Status.VolumeSnapshotID)
			n.registry.Reset()
			n.pull(p)
			require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
		})
	}
}
