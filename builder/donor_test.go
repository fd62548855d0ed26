package builder

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
)

// TestTakeFrom is E-22: layers come from several disks, by copying what is needed of them and nothing else, and only
// what none of them has is fetched. It works beside a disk that is added to.
func TestTakeFrom(t *testing.T) {
	r := newTestRegistry(t)
	base := gzipLayer(t, makeTar(t, tarContent{"etc/": "", "etc/passwd": "root:x:0:0", "big": bigContent(t, 5<<20), "holes": holes(t)}))
	wide := gzipLayer(t, makeTar(t, tarContent{"wide/": "", "wide/huge": bigContent(t, 30<<20)}))
	empty := gzipLayer(t, makeTar(t, nil))
	left := gzipLayer(t, makeTar(t, tarContent{"left/": "", "left/a": bigContent(t, 2<<20), "left/.wh.x": "", "left/empty": ""}))
	right := gzipLayer(t, makeTar(t, tarContent{"right/": "", "right/a": bigContent(t, 3<<20)}))
	fresh := gzipLayer(t, makeTar(t, tarContent{"fresh": bigContent(t, 1<<20)}))
	all := []forgedLayer{base, wide, empty, left, right, fresh}
	one := buildOptions(t, r.putImage(t, "team/one", "1", forgeImage(t, amd64, created, base, wide, empty, left)))
	_, err := Build(t.Context(), one)
	require.NoError(t, err)
	two := buildOptions(t, r.putImage(t, "team/two", "1", forgeImage(t, amd64, created, base, right, wide)))
	_, err = Build(t.Context(), two)
	require.NoError(t, err)
	narrow := r.putImage(t, "team/narrow", "1", forgeImage(t, amd64, created, base, empty, left, right, fresh))

	for name, added := range map[string]bool{"blank": false, "added to": true} {
		t.Run(name, func(t *testing.T) {
			before := make(map[digest.Digest]int)
			for _, l := range all {
				before[l.descriptor().Digest] = r.blobGets(l.descriptor().Digest)
			}
			donors := [][]byte{}
			for _, o := range []Options{one, two} {
				b, err := os.ReadFile(o.Output.Path)
				require.NoError(t, err)
				donors = append(donors, b)
			}
			o := buildOptions(t, narrow)
			o.Output.TakeFrom = []string{one.Output.Path, two.Output.Path}
			if added {
				o.Output = Output{Path: copyDisk(t, two.Output.Path, 0), Reuse: true, TakeFrom: []string{one.Output.Path}}
			}
			res, err := Build(t.Context(), o)
			require.NoError(t, err)
			for _, l := range all {
				d := l.descriptor().Digest
				want := before[d]
				if d == fresh.descriptor().Digest {
					want++
				}
				require.Equal(t, want, r.blobGets(d))
			}
			require.Equal(t, fresh.descriptor().Size, res.FetchedBytes)
			require.Equal(t, 4, res.ReusedLayers)
			baseBytes, leftBytes, rightBytes := int64(10<<20+100_000+10), int64(2<<20), int64(3<<20)
			require.Equal(t, baseBytes+leftBytes+rightBytes, res.ReusedBytes)
			if added {
				require.Equal(t, []Taken{{one.Output.Path, 2, leftBytes}}, res.TakenFrom, "the rest was there")
				require.Less(t, res.WrittenBytes, int64(4<<20))
			} else {
				require.Equal(t, []Taken{{one.Output.Path, 3, baseBytes + leftBytes}, {two.Output.Path, 1, rightBytes}}, res.TakenFrom)
				require.Less(t, res.DiskBytes, int64(12<<20), "holes stay holes, and what is not needed is not copied")
			}
			requireSound(t, o.Output.Path)
			requireFsckClean(t, o.Output.Path)
			requireSameIndex(t, o.Output.Path, narrow)
			for i, d := range []Options{one, two} {
				b, err := os.ReadFile(d.Output.Path)
				require.NoError(t, err)
				require.Equal(t, digest.FromBytes(donors[i]), digest.FromBytes(b), "donors are only read")
			}
		})
	}
}

// Layers that are bound to their stacks, and their looks, which share contents, are taken with all stacks or not.
func TestTakeStackBoundLayers(t *testing.T) {
	r := newTestRegistry(t)
	sticky := gzipLayer(t, privateTmp(t))
	plain := gzipLayer(t, makeTar(t, tarContent{"other/": ""}))
	bound := gzipLayer(t, makeTar(t, tarContent{"tmp/x": bigContent(t, 1<<20), "tmp/holes": holes(t)}))
	one := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, sticky, bound))
	two := r.putImage(t, "team/app", "2", forgeImage(t, amd64, created, plain, bound))
	donor := buildOptions(t, one, two)
	_, err := Build(t.Context(), donor)
	require.NoError(t, err)
	for _, images := range [][]string{{two, one}, {two}, {one}} {
		o := buildOptions(t, images...)
		o.Output.TakeFrom = []string{donor.Output.Path}
		res, err := Build(t.Context(), o)
		require.NoError(t, err)
		require.Zero(t, res.FetchedBytes)
		require.Less(t, res.DiskBytes, int64(2<<20), "looks share their contents here, too")
		requireSound(t, o.Output.Path)
		requireFsckClean(t, o.Output.Path)
		requireSameIndex(t, o.Output.Path, images...)
	}
}

// A donor that is no disk, or whose contents are cut off, ends the build with the class by which others do without it,
// and leaves nothing.
func TestTakeFromDamagedDisk(t *testing.T) {
	ref := onePut(t, gzipLayer(t, makeTar(t, tarContent{"a": bigContent(t, 3<<20)})))
	donor := buildOptions(t, ref)
	_, err := Build(t.Context(), donor)
	require.NoError(t, err)
	good, err := os.ReadFile(donor.Output.Path)
	require.NoError(t, err)
	h, err := layerdisk.ParseHeader(good)
	require.NoError(t, err)
	bad := filepath.Join(t.TempDir(), "bad")
	for at := int(h.IndexOffset); at < len(good); at += 997 {
		b := append([]byte(nil), good...)
		for i := at; i < min(at+8, len(b)); i++ {
			b[i] ^= 0xff
		}
		require.NoError(t, os.WriteFile(bad, b, 0o600))
		o := buildOptions(t, ref)
		o.Output.TakeFrom = []string{bad}
		if _, err := Build(t.Context(), o); err != nil {
			require.True(t, errdefs.IsDataLoss(err), "at %d: %v", at, err)
			require.NoFileExists(t, o.Output.Path)
			continue
		}
		requireSound(t, o.Output.Path)
	}
	o := buildOptions(t, ref)
	o.Output.TakeFrom = []string{filepath.Join(t.TempDir(), "absent")}
	_, err = Build(t.Context(), o)
	require.ErrorIs(t, err, ErrBase)
	require.NoFileExists(t, o.Output.Path)
}
