package layerdisk_test

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden keeps the bytes of the format from changing unnoticed: a disk built today must be readable for ever, and
// the same content must get the same identity from every version of this package.
func TestGolden(t *testing.T) {
	full := layerdisktest.Index(layerdisk.FileSystemExt4, append(testImages(), layerdisktest.Image{
		Reference: "docker.io/library/app:1.0",
		Platform:  ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7", OSVersion: "1", OSFeatures: []string{"a", "b"}},
		Layers:    []string{"arm"},
	})...)
	full.Created = time.Date(2026, 7, 8, 9, 10, 11, 123456789, time.UTC)
	full.Layers[1].Blobs = append(full.Layers[1].Blobs,
		layerdisk.Blob{Digest: layerdisktest.BlobDigest("zstd"), MediaType: ocispec.MediaTypeImageLayerZstd, Size: 7})
	slices.SortFunc(full.Layers[1].Blobs, func(a, b layerdisk.Blob) int { return bytes.Compare([]byte(a.Digest), []byte(b.Digest)) })
	full.Layers[1].UnpackedBytes, full.Layers[1].Inodes = 1<<40, 1<<20
	full.Images[0].Manifest.Annotations = map[string]string{"org.example/b": "<&>\n", "org.example/a": "\u00e9"}

	placed := layerdisktest.Index(layerdisk.FileSystemEROFS)
	placed.Placed = &layerdisk.Placed{Offset: 8192, Length: 12288, Files: 3}
	for name, ix := range map[string]*layerdisk.Index{
		"traced":  placed,
		"minimal": layerdisktest.Index(layerdisk.FileSystemEROFS),
		"full":    full,
	} {
		t.Run(name, func(t *testing.T) {
			encoded, err := layerdisk.Seal(ix)
			require.NoError(t, err)
			header, err := layerdisk.NewHeader(ix, encoded, 1<<20, 1<<30).MarshalBinary()
			require.NoError(t, err)
			golden(t, "index-v1-"+name+".json", encoded)
			golden(t, "header-v1-"+name+".bin", header)
			got, err := layerdisk.Parse(encoded)
			require.NoError(t, err)
			again, err := layerdisk.Encode(*got)
			require.NoError(t, err)
			require.Equal(t, string(encoded), string(again))
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(name, got, 0o644))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

// TestRoundTrip encodes and parses indexes of random images that share random layers.
func TestRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		var images []layerdisktest.Image
		for i := range rnd.IntN(8) {
			img := layerdisktest.Image{Reference: "example.com/image:" + strconv.Itoa(i), WithIndex: rnd.IntN(2) == 0}
			for range rnd.IntN(12) {
				// Few names, so that layers and whole stacks are shared and come twice in one image.
				img.Layers = append(img.Layers, "layer "+strconv.Itoa(rnd.IntN(5)))
			}
			images = append(images, img)
		}
		ix := layerdisktest.Index(layerdisk.FileSystemEROFS, images...)
		encoded, err := layerdisk.Seal(ix)
		require.NoError(t, err)
		got, err := layerdisk.Parse(encoded)
		require.NoError(t, err)
		again, err := layerdisk.Encode(*got)
		require.NoError(t, err)
		require.Equal(t, string(encoded), string(again))
		requireLookups(t, got, images)
	}
}

// requireLookups compares every answer with what the images were made from.
func requireLookups(t *testing.T, ix *layerdisk.Index, images []layerdisktest.Image) {
	t.Helper()
	l := layerdisk.NewLookup(ix)
	for _, img := range images {
		for i, name := range img.Layers {
			chain, layer, ok := l.Chain(layerdisktest.ChainID(img.Layers[:i+1]...))
			require.True(t, ok)
			require.Equal(t, layerdisktest.DiffID(name), layer.DiffID)
			require.Equal(t, layerdisktest.ChainID(img.Layers[:i]...), chain.Parent)
			byDiffID, ok := l.Layer(layerdisktest.DiffID(name))
			require.True(t, ok)
			require.Equal(t, layer, byDiffID)
			byBlob, blob, ok := l.Blob(layerdisktest.BlobDigest(name))
			require.True(t, ok)
			require.Equal(t, layer, byBlob)
			require.Equal(t, layerdisktest.BlobDigest(name), blob.Digest)
		}
		stack := l.Stack(layerdisktest.ChainID(img.Layers...))
		require.Len(t, stack, len(img.Layers))
		for i, name := range img.Layers {
			require.Equal(t, layerdisktest.DiffID(name), stack[i].DiffID)
		}
		found := l.Images(img.Reference, nil)
		require.Len(t, found, 1)
		require.Equal(t, layerdisktest.ChainID(img.Layers...), found[0].ChainID)
	}
}

func TestLookupMisses(t *testing.T) {
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
	l := layerdisk.NewLookup(ix)
	require.Same(t, ix, l.Index())
	_, _, ok := l.Chain(layerdisktest.ChainID("lib", "base"))
	require.False(t, ok, "another order of the same layers")
	_, _, ok = l.Chain(layerdisktest.DiffID("lib"))
	require.False(t, ok, "a layer that is never the lowest")
	_, _, ok = l.Chain("")
	require.False(t, ok)
	_, ok = l.Layer("")
	require.False(t, ok)
	_, ok = l.Layer(layerdisktest.BlobDigest("base"))
	require.False(t, ok, "a blob digest is no diff ID")
	_, _, ok = l.Blob(layerdisktest.DiffID("base"))
	require.False(t, ok, "a diff ID is no blob digest")
	require.Nil(t, l.Stack(layerdisktest.ChainID("lib")))
	require.Nil(t, l.Stack(""))
}

func TestLookupImages(t *testing.T) {
	amd, arm := ocispec.Platform{OS: "linux", Architecture: "amd64"}, ocispec.Platform{OS: "linux", Architecture: "arm64"}
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS,
		layerdisktest.Image{Reference: "docker.io/library/app:1", Platform: amd, Layers: []string{"a"}},
		layerdisktest.Image{Reference: "docker.io/library/app:1", Platform: arm, Layers: []string{"b"}})
	_, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	l := layerdisk.NewLookup(ix)
	require.Len(t, l.Images("docker.io/library/app:1", nil), 2)
	require.Equal(t, []layerdisk.Image{ix.Images[1]}, l.Images("docker.io/library/app:1", platforms.Only(arm)))
	require.Empty(t, l.Images("docker.io/library/app:1", platforms.Only(ocispec.Platform{OS: "linux", Architecture: "s390x"})))
	require.Empty(t, l.Images("app:1", nil), "references are looked up as they are")
	require.Equal(t, []ocispec.Platform{amd, arm}, l.Platforms("docker.io/library/app:1"))
}
