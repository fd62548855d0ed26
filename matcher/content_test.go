package matcher_test

import (
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	. "berth.dev/berth/matcher"
)

// TestContent shows that a real index of a layer disk is matched by image, by stack and by layer.
func TestContent(t *testing.T) {
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS,
		layerdisktest.Image{Reference: "docker.io/library/web:1", Layers: []string{"os", "lib", "web"}, WithIndex: true},
		layerdisktest.Image{Reference: "docker.io/library/db:1", Layers: []string{"lib", "db"},
			Platform: ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}})
	zstd := digest.FromString("zstd form of web")
	for n := range ix.Layers {
		if ix.Layers[n].DiffID == layerdisktest.DiffID("web") {
			ix.Layers[n].Blobs = append(ix.Layers[n].Blobs, layerdisk.Blob{Digest: zstd, MediaType: "x", Size: 9})
			ix.Layers[n].UnpackedBytes = 77
		}
	}
	images, layers := Content(ix)
	require.Equal(t, []CandidateImage{
		{Reference: "docker.io/library/web:1", Platform: amd64, ManifestDigest: ix.Images[0].Manifest.Digest,
			IndexDigest: ix.Images[0].IndexDescriptor.Digest, SizeBytes: 1002 + 1003 + 1003},
		{Reference: "docker.io/library/db:1", Platform: Platform{OS: "linux", Architecture: "arm", Variant: "v7"},
			ManifestDigest: ix.Images[1].Manifest.Digest, SizeBytes: 1003 + 1002},
	}, images)
	require.Len(t, layers, len(ix.Chains)+1)

	x := fleet(t, Candidate{Name: "disk", ID: "1", State: StateAvailable, Images: images, Layers: layers})
	for name, tc := range map[string]struct {
		image Image
		saved Saving
	}{
		"by name":                 {Image{Reference: "docker.io/library/web:1", Platform: amd64}, Saving{3008, 0}},
		"by manifest":             {Image{ManifestDigest: ix.Images[1].Manifest.Digest}, Saving{2005, 0}},
		"by index":                {Image{Reference: "docker.io/library/web@" + ix.Images[0].IndexDescriptor.Digest.String()}, Saving{3008, 0}},
		"by stack":                {Image{Reference: "a:1", Layers: []Layer{{LayerName: layerdisk.LayerName{ChainID: layerdisktest.ChainID("os")}}, {LayerName: layerdisk.LayerName{ChainID: layerdisktest.ChainID("os", "lib")}}}}, Saving{2005, 0}},
		"by layer above a hole":   {Image{Reference: "a:1", Layers: []Layer{{LayerName: layerdisk.LayerName{DiffID: digest.FromString("?")}, CompressedBytes: 5}, {LayerName: layerdisk.LayerName{DiffID: layerdisktest.DiffID("web")}}}}, Saving{0, 77}},
		"by another blob":         {Image{Reference: "a:1", Layers: []Layer{{LayerName: layerdisk.LayerName{Blob: zstd}}}}, Saving{9, 0}},
		"by the first blob":       {Image{Reference: "a:1", Layers: []Layer{{LayerName: layerdisk.LayerName{Blob: layerdisktest.BlobDigest("web")}}}}, Saving{1003, 0}},
		"blob of a layer in both": {Image{Reference: "a:1", Layers: []Layer{{LayerName: layerdisk.LayerName{Blob: layerdisktest.BlobDigest("lib")}}}}, Saving{1003, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			d := match(t, x, auto(tc.image))
			require.Equal(t, []string{"disk"}, names(d))
			require.Equal(t, tc.saved, d.Saved)
		})
	}
}

// TestContentOfAbsurdSizes shows that an index with any sizes that layerdisk lets through can be matched.
func TestContentOfAbsurdSizes(t *testing.T) {
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, layerdisktest.Image{Reference: "docker.io/library/web:1", Layers: []string{"a", "b", "c"}})
	for n := range ix.Layers {
		ix.Layers[n].UnpackedBytes, ix.Layers[n].Blobs[0].Size = layerdisk.MaxContentBytes, layerdisk.MaxContentBytes
	}
	for name, raw := range map[string]string{
		"negative": `{"layers":[{"size":-1}]}`, "overflow": `{"layers":[{"size":9223372036854775807},{"size":9223372036854775807}]}`,
		"no number": `{"layers":[{"size":"1"}]}`, "no manifest": `[`,
	} {
		t.Run(name, func(t *testing.T) {
			ix.Images[0].RawManifest = []byte(raw)
			images, layers := Content(ix)
			x := fleet(t, Candidate{Name: "disk", ID: "1", State: StateAvailable, Images: images, Layers: layers})
			d := match(t, x, auto(Image{Reference: "docker.io/library/web:1"}))
			require.Equal(t, OutcomeUse, d.Outcome)
			require.Positive(t, d.Saved.DownloadBytes)
		})
	}
}
