package stage

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// The file behind a disk that is in use is cut off: reads of the device fail from then on.
func TestDiskVanishes(t *testing.T) {
	n := newNode(t)
	n.start()
	path, id := n.disk("one", "erofs", "a", "b")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	n.stage("one", path)
	n.acquire("h", chain("a"), "a")

	require.NoError(t, os.Truncate(path, 0))
	var miss *MissError
	soon(t, "the broken disk is seen", func() bool {
		_, err := n.Layers.Acquire(t.Context(), "i", chain("a", "b"))
		if err == nil {
			require.NoError(t, n.Layers.Release(t.Context(), "i"))
			return false
		}
		require.ErrorAs(t, err, &miss)
		return true
	})
	require.Equal(t, MissFailed, miss.Reason)
	st := n.status("one")
	require.Equal(t, StateFailed, st.State)
	require.Error(t, st.LastError)
	require.Equal(t, 1, st.Holders)
	_, err = n.Layers.LayerDir(id.UUID, 0)
	require.True(t, errdefs.IsUnavailable(err), err)

	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(data, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	soon(t, "the disk comes back", func() bool { return n.status("one").Serving })
	n.acquire("i", chain("a", "b"), "b")
	mounts, err := fsmount.Below(n.dir)
	require.NoError(t, err)
	require.Len(t, mounts, 1)
}

func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	n.start()
	paths := make([]string, 3)
	for i := range paths {
		// All disks share a layer, and each has one of its own.
		paths[i], _ = n.disk(fmt.Sprint("disk", i), "erofs", "shared", fmt.Sprint("own", i))
	}
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for round := range 25 {
				i := rand.IntN(len(paths)) //nolint:gosec // only to mix
				name, holder := fmt.Sprint("disk", i), fmt.Sprintf("%d-%d", worker, round)
				if worker < 2 {
					_, err := n.Stage(t.Context(), Spec{Name: name, Driver: "loop", VolumeID: paths[i]})
					if err != nil {
						t.Errorf("stage: %v", err)
					}
					if _, err := n.Unstage(t.Context(), name, UnstageOptions{Drain: round%2 == 0}); err != nil && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err) {
						t.Errorf("unstage: %v", err)
					}
					continue
				}
				held, err := n.Layers.Acquire(t.Context(), holder, chain("shared", fmt.Sprint("own", i)))
				if err != nil {
					if !errdefs.IsNotFound(err) {
						t.Errorf("acquire: %v", err)
					}
					continue
				}
				got, err := os.ReadFile(filepath.Join(held.Dir, "name"))
				if err != nil || string(got) != fmt.Sprint("own", i) {
					t.Errorf("a held layer reads %q, %v", got, err)
				}
				if err := n.Layers.Release(t.Context(), holder); err != nil {
					t.Errorf("release: %v", err)
				}
			}
		})
	}
	group.Wait()
	for i := range paths {
		_, err := n.Unstage(t.Context(), fmt.Sprint("disk", i), UnstageOptions{})
		require.True(t, err == nil || errdefs.IsNotFound(err), "%v", err)
	}
	soon(t, "all leave", func() bool { return len(n.Disks()) == 0 })
	require.Empty(t, n.left())
}

// The cost of a hit must not grow with disks or holders.
func BenchmarkAcquire(b *testing.B) {
	for _, tc := range []struct{ disks, holders int }{{1, 0}, {1, 20000}, {100, 0}, {100, 20000}} {
		b.Run(fmt.Sprintf("disks=%d/holders=%d", tc.disks, tc.holders), func(b *testing.B) {
			c := newCloud(b, nil)
			defer c.close()
			for i := range tc.disks {
				name := fmt.Sprintf("disk%d", i)
				layers := []string{"shared"}
				for l := range 20 {
					layers = append(layers, fmt.Sprintf("%s-%d", name, l))
				}
				v := c.sys.volume(b, name, layers...)
				_, err := c.Stage(b.Context(), Spec{Name: name, Driver: "cloud", VolumeID: v.ID})
				require.NoError(b, err)
			}
			uuid := c.Disks()[0].UUID
			c.mu.Lock()
			for i := range tc.holders {
				c.fleet.holds.put(Hold{fmt.Sprint("other", i), uuid, i % 20})
			}
			c.mu.Unlock()
			query := chain("shared")
			b.ResetTimer()
			for b.Loop() {
				if _, err := c.Layers.Acquire(b.Context(), "h", query); err != nil {
					b.Fatal(err)
				}
				if err := c.Layers.Release(b.Context(), "h"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestLayerTable(t *testing.T) {
	table := newLayerTable()
	disks := map[string]*disk{}
	for _, name := range []string{"b", "a", "c"} {
		ix := layerdisktest.Index("erofs", layerdisktest.Image{Reference: "example.org/x:1", Layers: []string{"one", name}})
		_, err := layerdisk.Seal(ix)
		require.NoError(t, err)
		disks[name] = &disk{rec: record{Spec: Spec{Name: name}}, lookup: layerdisk.NewLookup(ix)}
		table.add(disks[name])
	}
	used := ""
	find := func(q layerdisk.LayerName) (string, int, layerdisk.Match) {
		l, match, ok := table.find(q, func(d *disk) bool { return d.rec.Spec.Name == used })
		if !ok {
			return "", 0, ""
		}
		return l.disk.rec.Spec.Name, l.layer, match
	}
	for _, tc := range []struct {
		name, used, disk string
		q                layerdisk.LayerName
		layer            int
		match            layerdisk.Match
	}{
		{"first by name", "", "a", chain("one"), 0, layerdisk.MatchChainID},
		{"one in use", "c", "c", chain("one"), 0, layerdisk.MatchChainID},
		{"one in use without the layer", "c", "b", chain("one", "b"), 1, layerdisk.MatchChainID},
		{"widest first", "", "b", layerdisk.LayerName{ChainID: layerdisktest.ChainID("one", "b"), DiffID: layerdisktest.DiffID("c")}, 1, layerdisk.MatchChainID},
		{"diff ID", "", "c", layerdisk.LayerName{ChainID: layerdisktest.ChainID("two", "c"), DiffID: layerdisktest.DiffID("c")}, 1, layerdisk.MatchDiffID},
		{"diff ID at the bottom", "", "", layerdisk.LayerName{ChainID: layerdisktest.ChainID("c"), DiffID: layerdisktest.DiffID("c")}, 0, ""},
		{"blob", "", "b", layerdisk.LayerName{Blob: layerdisktest.BlobDigest("b")}, 1, layerdisk.MatchBlob},
		{"blob at the bottom", "", "", layerdisk.LayerName{ChainID: layerdisktest.ChainID("b"), Blob: layerdisktest.BlobDigest("b")}, 0, ""},
		{"none", "", "", layerdisk.LayerName{Blob: digest.FromString("none")}, 0, ""},
		{"nothing asked", "", "", layerdisk.LayerName{}, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			used = tc.used
			name, layer, match := find(tc.q)
			require.Equal(t, tc.disk, name)
			require.Equal(t, tc.layer, layer)
			require.Equal(t, tc.match, match)
		})
	}
	for _, d := range disks {
		table.remove(d)
		table.remove(d)
	}
	require.Equal(t, newLayerTable(), table, "nothing is left of disks that left")
}
