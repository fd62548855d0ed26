package snapshotter_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/snapshotter"
)

// anyLayer is a source that has every layer, so that benchmarks can go on adopting.
type anyLayer struct{ dir string }

func (a anyLayer) Acquire(_ context.Context, _ string, want snapshotter.LayerRequest) (snapshotter.HeldLayer, error) {
	return snapshotter.HeldLayer{Dir: a.dir, DiskUUID: "any", DiffID: want.DiffID, MatchedBy: layerdisk.MatchChainID}, nil
}
func (a anyLayer) Release(context.Context, string) error { return nil }
func (a anyLayer) LayerDir(context.Context, string, int) (string, error) {
	return a.dir, nil
}

// scanning is the snapshotter without its index: a filter that means the same but is not recognised.
type scanning struct{ *snapshotter.Snapshotter }

func (s scanning) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	if len(filters) == 1 {
		filters[0] += ",kind==committed"
	}
	return s.Snapshotter.Walk(ctx, fn, filters...)
}

// fill puts committed snapshots, ten to a stack, into a store that is not open.
func fill(b *testing.B, root string, count int) {
	b.Helper()
	require.NoError(b, os.MkdirAll(root, 0o700))
	meta, err := storage.NewMetaStore(filepath.Join(root, "metadata.db"))
	require.NoError(b, err)
	require.NoError(b, meta.WithTransaction(b.Context(), true, func(ctx context.Context) error {
		parent := ""
		for i := range count {
			if i%10 == 0 {
				parent = ""
			}
			ref := digest.FromString(fmt.Sprint(i)).String()
			name := fmt.Sprintf("default/%d/%s", i, ref)
			labels := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": ref, "containerd.io/snapshot/diff-id": ref})
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, "k", parent, labels); err != nil {
				return err
			}
			if _, err := storage.CommitActive(ctx, "k", name, snapshots.Usage{}, labels); err != nil {
				return err
			}
			parent = name
		}
		return nil
	}))
	require.NoError(b, meta.Close())
}

// BenchmarkHit is all that containerd waits for when a layer need not be fetched: Prepare and Stat of its metadata
// store, over gRPC.
func BenchmarkHit(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for _, count := range []int{100, 1000, 20000} {
		for _, scan := range []bool{false, true} {
			b.Run(fmt.Sprintf("snapshots=%d/index=%v", count, !scan), func(b *testing.B) {
				dir := b.TempDir()
				root := filepath.Join(dir, "root")
				fill(b, root, count)
				sn, err := snapshotter.Open(b.Context(), snapshotter.Config{Root: root, Source: anyLayer{dir}})
				require.NoError(b, err)
				var serve snapshots.Snapshotter = sn
				if scan {
					serve = scanning{sn}
				}
				s := serveStack(b, dir, serve)
				ctx := namespaces.WithNamespace(b.Context(), "default")
				for b.Loop() {
					chain := digest.FromString(rand.Text()).String()
					_, err := s.meta.Prepare(ctx, "extract-1 "+chain, "", snapshots.WithLabels(map[string]string{
						"containerd.io/snapshot.ref": chain, "containerd.io/snapshot/diff-id": chain,
					}))
					require.ErrorIs(b, err, errdefs.ErrAlreadyExists)
					_, err = s.meta.Stat(ctx, chain)
					require.NoError(b, err)
				}
			})
		}
	}
}

// BenchmarkOperations compares what does not concern adoption with the stock snapshotter, over the same gRPC proxy.
func BenchmarkOperations(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for _, name := range []string{"stock", "berth"} {
		open := func(b *testing.B) (snapshots.Snapshotter, string) {
			var s *stack
			if name == "stock" {
				s = stockStack(b)
			} else {
				s = newStack(b, filepath.Join(b.TempDir(), "root"), snapshotter.Config{Source: newSource()})
			}
			parent := ""
			for i := range 10 {
				_, err := s.proxy.Prepare(b.Context(), "k", parent)
				require.NoError(b, err)
				parent = fmt.Sprint("layer-", i)
				require.NoError(b, s.proxy.Commit(b.Context(), parent, "k"))
			}
			return s.proxy, parent
		}
		b.Run("prepare/"+name, func(b *testing.B) {
			s, parent := open(b)
			for i := 0; b.Loop(); i++ {
				_, err := s.Prepare(b.Context(), fmt.Sprint(i), parent)
				require.NoError(b, err)
			}
		})
		b.Run("mounts/"+name, func(b *testing.B) {
			s, parent := open(b)
			_, err := s.Prepare(b.Context(), "c", parent)
			require.NoError(b, err)
			for b.Loop() {
				_, err := s.Mounts(b.Context(), "c")
				require.NoError(b, err)
			}
		})
		b.Run("life/"+name, func(b *testing.B) { // Prepare, Commit and Remove
			s, parent := open(b)
			for b.Loop() {
				_, err := s.Prepare(b.Context(), "c", parent)
				require.NoError(b, err)
				require.NoError(b, s.Commit(b.Context(), "n", "c"))
				require.NoError(b, s.Remove(b.Context(), "n"))
			}
		})
		b.Run("walk/"+name, func(b *testing.B) {
			s, _ := open(b)
			for b.Loop() {
				require.NoError(b, s.Walk(b.Context(), func(context.Context, snapshots.Info) error { return nil }))
			}
		})
		// How long a container waits to be prepared while a layer of 20,000 files is committed.
		b.Run("prepare-during-commit/"+name, func(b *testing.B) {
			s, parent := open(b)
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				big := fmt.Sprint("big-", i)
				mounts, err := s.Prepare(b.Context(), big, "")
				require.NoError(b, err)
				for d := range 20 {
					dir := filepath.Join(mounts[0].Source, fmt.Sprint(d))
					require.NoError(b, os.Mkdir(dir, 0o755))
					for f := range 1000 {
						require.NoError(b, os.WriteFile(filepath.Join(dir, strings.Repeat("f", 5)+fmt.Sprint(f)), nil, 0o600))
					}
				}
				done := make(chan error, 1)
				go func() { done <- s.Commit(b.Context(), big+"-committed", big) }()
				b.StartTimer()
				_, err = s.Prepare(b.Context(), fmt.Sprint("c", i), parent)
				b.StopTimer()
				require.NoError(b, err)
				require.NoError(b, <-done)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkMountsOverDisks is Mounts of a container with 60 adopted layers.
func BenchmarkMountsOverDisks(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	var tars [][]byte
	for i := range 60 {
		tars = append(tars, tarOf(b, entry{name: fmt.Sprint(i), body: "x"}))
	}
	im := forge(b, "tall", nil, tars...)
	dir := b.TempDir()
	s := newStack(b, filepath.Join(dir, "root"), snapshotter.Config{Source: anyLayer{dir}})
	s.mustPull(b, im, pulling{})
	ctx := pulling{}.context(b)
	_, err := s.meta.Prepare(ctx, "c", im.top().String())
	require.NoError(b, err)
	for b.Loop() {
		_, err := s.meta.Mounts(ctx, "c")
		require.NoError(b, err)
	}
}
