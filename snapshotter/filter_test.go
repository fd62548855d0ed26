package snapshotter_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

func TestTargetFilter(t *testing.T) {
	const chain = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
	for _, c := range []struct {
		filters     []string
		ref, parent string
		ok          bool
	}{
		// What the metadata store writes: the first form up to 2.3, the second since.
		{[]string{fmt.Sprintf(`labels."containerd.io/snapshot.ref"==%s,parent==%q`, chain, "default/5/"+chain)}, chain, "default/5/" + chain, true},
		{[]string{fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, chain, "/layer/7/"+chain)}, chain, "/layer/7/" + chain, true},
		{[]string{fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, chain, "")}, chain, "", true},
		{[]string{fmt.Sprintf(`labels.%q==%q,parent==%q`, snapshots.LabelSnapshotRef, chain, "p")}, chain, "p", true},
		// What may mean the same, or not, is left to the store.
		{nil, "", "", false},
		{[]string{""}, "", "", false},
		{[]string{`parent=="p"`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==x`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==x,parent==p`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==x,parent=="p",kind==active`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==x,parent=="p"`, `kind==active`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"!=x,parent=="p"`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==x,parent=="p\"q"`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==x,parent=="p\u0041"`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==,parent==""`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==.x,parent==""`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==|x|,parent==""`}, "", "", false},
		{[]string{`labels."containerd.io/snapshot.ref"==x ,parent==""`}, "", "", false},
	} {
		ref, parent, ok := snapshotter.TargetFilter(c.filters)
		require.Equal(t, c.ok, ok, "%q", c.filters)
		if ok {
			require.Equal(t, c.ref, ref)
			require.Equal(t, c.parent, parent)
		}
	}
}

// checkFilter: whatever is recognised, containerd's own parser reads it the same way.
func checkFilter(t *testing.T, filter string, others ...string) {
	t.Helper()
	ref, parent, ok := snapshotter.TargetFilter([]string{filter})
	if !ok {
		return
	}
	f, err := filters.ParseAll(filter)
	require.NoError(t, err, "%q", filter)
	match := func(ref, parent string) bool {
		return f.Match(adaptor(snapshots.Info{Parent: parent, Labels: map[string]string{snapshots.LabelSnapshotRef: ref}}))
	}
	require.True(t, match(ref, parent), "%q", filter)
	for _, other := range append(others, "", "x") {
		require.Equal(t, ref == other, match(other, parent), "%q", filter)
		require.Equal(t, parent == other, match(ref, other), "%q", filter)
	}
}

// TestTargetFilterAgreesWithContainerd tries what keys and digests could be made of.
func TestTargetFilterAgreesWithContainerd(t *testing.T) {
	letters := []rune("ab1:/.,\"\\|= _-+é\x00\n~!'")
	r := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		w := make([]rune, r.IntN(6))
		for i := range w {
			w[i] = letters[r.IntN(len(letters))]
		}
		return string(w)
	}
	recognised := 0
	for range 20000 {
		ref, parent := word(), word()
		for _, filter := range []string{
			fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, ref, parent),
			fmt.Sprintf(`labels.%q==%q,parent==%q`, snapshots.LabelSnapshotRef, ref, parent),
			fmt.Sprintf(`labels.%q==%s,parent==%s`, snapshots.LabelSnapshotRef, ref, parent),
		} {
			if _, _, ok := snapshotter.TargetFilter([]string{filter}); ok {
				recognised++
			}
			checkFilter(t, filter, ref, parent)
		}
	}
	require.Greater(t, recognised, 1000)
}

func FuzzTargetFilter(f *testing.F) {
	f.Add(`labels."containerd.io/snapshot.ref"==sha256:1,parent=="default/1/sha256:2"`)
	f.Add(`labels."containerd.io/snapshot.ref"=="a",parent==""`)
	f.Fuzz(func(t *testing.T, filter string) { checkFilter(t, filter) })
}

// TestWalkFindsTheSame: the index and the store agree, whatever was done to the snapshots.
func TestWalkFindsTheSame(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, pick(im, 0, 1, 3))
	n.mustPull(t, im, pulling{namespace: "a"})
	n.mustPull(t, im, pulling{namespace: "b", parallel: 4, rebase: true})
	n.removeImage(t, im, pulling{namespace: "a"})
	n.collect(t)
	n.mustPull(t, im, pulling{namespace: "c"})
	check := func() {
		for _, l := range im.layers {
			for _, parent := range append(walk(t, n.berth), "") {
				quick := fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, l.chainID, parent)
				slow := fmt.Sprintf(`parent==%q,labels.%q==%s`, parent, snapshots.LabelSnapshotRef, l.chainID)
				require.Equal(t, walk(t, n.berth, slow), walk(t, n.berth, quick))
			}
		}
	}
	check()
	n.stop()
	n.stack = newStack(t, n.root, snapshotter.Config{Source: n.source, Observer: n.seen})
	check()
}
