package layerdisk_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// sealed is a valid index to spoil. Its images are those of testImages, its layers base, lib, app, tool.
func sealed(t *testing.T) *layerdisk.Index {
	t.Helper()
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
	_, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	return ix
}

// TestParseRefusesValues spoils one value at a time.
func TestParseRefusesValues(t *testing.T) {
	other := digest.FromString("other")
	reconfigure := func(ix *layerdisk.Index, i int, config string) {
		img := &ix.Images[i]
		img.RawConfig = []byte(config)
		img.Config.Digest, img.Config.Size = digest.FromString(config), int64(len(config))
		var m ocispec.Manifest
		if json.Unmarshal(img.RawManifest, &m) == nil {
			m.Config = img.Config
			img.RawManifest, _ = json.Marshal(m)
			img.Manifest.Digest, img.Manifest.Size = digest.FromBytes(img.RawManifest), int64(len(img.RawManifest))
		}
	}
	remanifest := func(ix *layerdisk.Index, i int, change func(*ocispec.Manifest)) {
		img := &ix.Images[i]
		var m ocispec.Manifest
		if json.Unmarshal(img.RawManifest, &m) == nil {
			change(&m)
			img.RawManifest, _ = json.Marshal(m)
			img.Manifest.Digest, img.Manifest.Size = digest.FromBytes(img.RawManifest), int64(len(img.RawManifest))
		}
	}
	for _, tt := range []struct {
		name   string
		change func(ix *layerdisk.Index)
		want   string
	}{
		{"UUID empty", func(ix *layerdisk.Index) { ix.UUID = "" }, "UUID"},
		{"UUID nil", func(ix *layerdisk.Index) { ix.UUID = "00000000-0000-0000-0000-000000000000" }, "all zeros"},
		{"UUID in capitals", func(ix *layerdisk.Index) { ix.UUID = strings.ToUpper(ix.UUID) }, "not written as"},
		{"UUID as URN", func(ix *layerdisk.Index) { ix.UUID = "urn:uuid:" + ix.UUID }, "not written as"},
		{"file system", func(ix *layerdisk.Index) { ix.FileSystem = "xfs" }, `"xfs" is neither`},
		{"layer number gap", func(ix *layerdisk.Index) { ix.Layers[2].Number = 3 }, "layers[2] has number 3"},
		{"layer number negative", func(ix *layerdisk.Index) { ix.Layers[0].Number = -1 }, "number -1"},
		{"diff ID twice", func(ix *layerdisk.Index) { ix.Layers[1].DiffID = ix.Layers[0].DiffID }, "belongs to layers[0] already"},
		{"diff ID twice, one bound", func(ix *layerdisk.Index) {
			ix.Layers[1].DiffID, ix.Layers[1].StackBound = ix.Layers[0].DiffID, true
		}, "not both are bound"},
		{"diff ID empty", func(ix *layerdisk.Index) { ix.Layers[1].DiffID = "" }, "diff ID"},
		{"diff ID md5", func(ix *layerdisk.Index) { ix.Layers[1].DiffID = "md5:d41d8cd98f00b204e9800998ecf8427e" }, "diff ID"},
		{"diff ID short", func(ix *layerdisk.Index) { ix.Layers[1].DiffID = "sha256:abc" }, "diff ID"},
		{"diff ID a path", func(ix *layerdisk.Index) { ix.Layers[1].DiffID = "../../etc" }, "diff ID"},
		{"diff ID long", func(ix *layerdisk.Index) { ix.Layers[1].DiffID = digest.Digest("sha256:" + strings.Repeat("a", 1<<20)) }, "too long"},
		{"unpacked negative", func(ix *layerdisk.Index) { ix.Layers[0].UnpackedBytes = -1 }, "-1 unpacked bytes"},
		{"unpacked absurd", func(ix *layerdisk.Index) { ix.Layers[0].UnpackedBytes = 1<<50 + 1 }, "unpacked bytes"},
		{"inodes none", func(ix *layerdisk.Index) { ix.Layers[0].Inodes = 0 }, "0 inodes"},
		{"inodes absurd", func(ix *layerdisk.Index) { ix.Layers[0].Inodes = 1 << 40 }, "inodes"},
		{"attributes empty", func(ix *layerdisk.Index) { ix.Layers[0].Attributes = "" }, "attribute digest"},
		{"attributes other hash", func(ix *layerdisk.Index) { ix.Layers[0].Attributes = other.String() }, "attribute digest"},
		{"attributes capitals", func(ix *layerdisk.Index) { ix.Layers[0].Attributes = "blake3:" + strings.Repeat("A", 64) }, "attribute digest"},
		{"blob of two layers", func(ix *layerdisk.Index) { ix.Layers[1].Blobs[0].Digest = ix.Layers[0].Blobs[0].Digest }, "belongs to layers[0]"},
		{"blob twice", func(ix *layerdisk.Index) { ix.Layers[1].Blobs = append(ix.Layers[1].Blobs, ix.Layers[1].Blobs[0]) }, "not sorted"},
		{"blob size negative", func(ix *layerdisk.Index) { ix.Layers[1].Blobs[0].Size = -5 }, "size of -5 bytes"},
		{"blob media type empty", func(ix *layerdisk.Index) { ix.Layers[1].Blobs[0].MediaType = "" }, "media type"},
		{"blob media type escape", func(ix *layerdisk.Index) { ix.Layers[1].Blobs[0].MediaType = "a\x1b[2J" }, "control character"},
		{"too many blobs", func(ix *layerdisk.Index) { ix.Layers[1].Blobs = make([]layerdisk.Blob, layerdisk.MaxBlobsPerLayer+1) }, "1025 blobs"},
		{"chain ID made up", func(ix *layerdisk.Index) { ix.Chains[1].ChainID = other }, "parent and diff ID give"},
		{"lowest chain ID made up", func(ix *layerdisk.Index) { ix.Chains[0].ChainID = other }, "parent and diff ID give"},
		{"chain of unknown layer", func(ix *layerdisk.Index) { ix.Chains[0].DiffID = other }, "its layer 0 has diff ID"},
		{"chain of another layer", func(ix *layerdisk.Index) { ix.Chains[0].Layer = 1 }, "its layer 1 has diff ID"},
		{"chain of no layer", func(ix *layerdisk.Index) { ix.Chains[0].Layer = len(ix.Layers) }, "there is no layer"},
		{"chain of layer below zero", func(ix *layerdisk.Index) { ix.Chains[0].Layer = -1 }, "there is no layer -1"},
		{"chain without its parent", func(ix *layerdisk.Index) { ix.Chains = ix.Chains[1:] }, "does not stand before it"},
		{"chain before its parent", func(ix *layerdisk.Index) { ix.Chains[0], ix.Chains[1] = ix.Chains[1], ix.Chains[0] }, "does not stand before it"},
		{"chain its own parent", func(ix *layerdisk.Index) { ix.Chains[1].Parent = ix.Chains[1].ChainID }, "does not stand before it"},
		{"chain twice", func(ix *layerdisk.Index) { ix.Chains = append(ix.Chains, ix.Chains[0]) }, "is there twice"},
		{"image chain missing", func(ix *layerdisk.Index) { ix.Chains = ix.Chains[:2] }, "is not among the chains"},
		{"image chain of another", func(ix *layerdisk.Index) { ix.Images[0].ChainID = ix.Images[1].ChainID }, "the config's diff IDs give"},
		{"image chain empty", func(ix *layerdisk.Index) { ix.Images[0].ChainID = "" }, "the config's diff IDs give"},
		{"image chain too many", func(ix *layerdisk.Index) { ix.Images[3].ChainID = ix.Images[0].ChainID }, "the config's diff IDs give"},
		{"reference short", func(ix *layerdisk.Index) { ix.Images[0].Reference = "app:1.0" }, "not normalised"},
		{"reference without tag", func(ix *layerdisk.Index) { ix.Images[0].Reference = "docker.io/library/app" }, "neither tag nor digest"},
		{"reference none", func(ix *layerdisk.Index) { ix.Images[0].Reference = "" }, "reference"},
		{"reference long", func(ix *layerdisk.Index) { ix.Images[0].Reference = "docker.io/" + strings.Repeat("a/", 1000) + "b:1" }, "at most 1024"},
		{"image twice", func(ix *layerdisk.Index) { ix.Images = append(ix.Images, ix.Images[0]) }, "is there twice"},
		{"platform not normalised", func(ix *layerdisk.Index) { ix.Images[0].Platform.Architecture = "x86_64" }, "not normalised"},
		{"platform empty", func(ix *layerdisk.Index) { ix.Images[0].Platform = ocispec.Platform{} }, "lacks"},
		{"platform long", func(ix *layerdisk.Index) { ix.Images[0].Platform.OSVersion = strings.Repeat("1", 300) }, "300 bytes"},
		{"platform features", func(ix *layerdisk.Index) { ix.Images[0].Platform.OSFeatures = make([]string, 65) }, "os.features"},
		{"manifest bytes", func(ix *layerdisk.Index) { ix.Images[0].RawManifest[0] = ' ' }, "manifest: its descriptor says"},
		{"manifest size", func(ix *layerdisk.Index) { ix.Images[0].Manifest.Size++ }, "the raw bytes are"},
		{"manifest none", func(ix *layerdisk.Index) { ix.Images[0].RawManifest = nil }, "the raw bytes are 0"},
		{"manifest not JSON", func(ix *layerdisk.Index) {
			img := &ix.Images[0]
			img.RawManifest = []byte("[")
			img.Manifest.Digest, img.Manifest.Size = digest.FromBytes(img.RawManifest), 1
		}, "decode manifest"},
		{"manifest of another config", func(ix *layerdisk.Index) {
			remanifest(ix, 0, func(m *ocispec.Manifest) { m.Config.Digest = other })
		}, "the manifest's config is"},
		{"manifest with fewer layers", func(ix *layerdisk.Index) {
			remanifest(ix, 0, func(m *ocispec.Manifest) { m.Layers = m.Layers[1:] })
		}, "the manifest has 2 layers, the config 3"},
		{"manifest layers swapped", func(ix *layerdisk.Index) {
			remanifest(ix, 0, func(m *ocispec.Manifest) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] })
		}, "is a blob of"},
		{"config bytes", func(ix *layerdisk.Index) { ix.Images[0].RawConfig = []byte("{}") }, "config: its descriptor says"},
		{"config not JSON", func(ix *layerdisk.Index) { reconfigure(ix, 0, "{") }, "decode config"},
		{"config diff ID bad", func(ix *layerdisk.Index) { reconfigure(ix, 0, `{"rootfs":{"diff_ids":["sha256:x"]}}`) }, "rootfs.diff_ids[0]"},
		{"config with too many layers", func(ix *layerdisk.Index) {
			ids := strings.Repeat(fmt.Sprintf("%q,", other), layerdisk.MaxLayersPerImage)
			reconfigure(ix, 0, fmt.Sprintf(`{"rootfs":{"diff_ids":[%s%q]}}`, ids, other))
		}, "501 layers"},
		{"index without bytes", func(ix *layerdisk.Index) { ix.Images[0].RawIndex = nil }, "there together"},
		{"index without descriptor", func(ix *layerdisk.Index) { ix.Images[0].IndexDescriptor = nil }, "there together"},
		{"index bytes", func(ix *layerdisk.Index) { ix.Images[0].RawIndex[0] = ' ' }, "index: its descriptor says"},
		{"raw too large", func(ix *layerdisk.Index) { ix.Images[0].RawConfig = make([]byte, layerdisk.MaxRawBytes+1) }, "raw bytes, at most"},
		{"annotations", func(ix *layerdisk.Index) {
			ix.Images[0].Manifest.Annotations = map[string]string{"a": strings.Repeat("b", 1<<17)}
		}, "bytes of annotations"},
		{"URLs", func(ix *layerdisk.Index) { ix.Images[0].Manifest.URLs = make([]string, 65) }, "65 URLs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ix := sealed(t)
			tt.change(ix)
			encoded, err := json.Marshal(ix)
			require.NoError(t, err)
			_, err = layerdisk.Parse(encoded)
			require.ErrorIs(t, err, layerdisk.ErrCorrupt)
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, tt.want)
			require.Less(t, len(err.Error()), 1000, "message repeats hostile input")
			// What a reader refuses a writer does not write.
			_, err = layerdisk.Encode(*ix)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

// TestParseRefusesText spoils the JSON text by replacing its first occurrence of old.
func TestParseRefusesText(t *testing.T) {
	encoded, err := layerdisk.Encode(*sealed(t))
	require.NoError(t, err)
	for _, tt := range []struct{ name, old, new, want string }{
		{"duplicate name", `"uuid":`, `"uuid":"","uuid":`, `"uuid" is given twice`},
		{"duplicate unknown name", `"uuid":`, `"x":1,"x":2,"uuid":`, `"x" is given twice`},
		{"duplicate name inside", `"number":0`, `"number":0,"number":0`, `"number" is given twice`},
		{"escaped duplicate name", `"uuid":`, `"uu\u0069d":"","uuid":`, `"uuid" is given twice`},
		{"other case", `"uuid":`, `"UUID":`, `must be spelled "uuid"`},
		{"other case beside it", `"uuid":`, `"Uuid":"","uuid":`, `must be spelled "uuid"`},
		{"folded letter", `"chains":`, `"chain\u017f":`, `must be spelled "chains"`},
		{"not UTF-8", `"uuid":`, "\"\xff\":1,\"uuid\":", "UTF-8"},
		{"deep", `"uuid":`, `"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `,"uuid":`, "levels of nesting"},
		{"very deep", `"uuid":`, `"x":` + strings.Repeat(`{"a":`, 100000) + `1,"uuid":`, "levels of nesting"},
		{"trailing", "]}\n", "]}{}", "index"},
		{"wrong type", `"number":0`, `"number":"0"`, "number"},
		{"fraction", `"number":0`, `"number":0.5`, "number"},
		{"huge number", `"unpackedBytes":0`, `"unpackedBytes":1e30`, "unpackedBytes"},
		{"overflow", `"unpackedBytes":0`, `"unpackedBytes":9223372036854775808`, "unpackedBytes"},
		{"bad base64", `"rawConfig":"`, `"rawConfig":"*`, "base64"},
		{"bad time", `"created":"2026`, `"created":"26`, "time"},
		{"version without minor", `"1.0"`, `"1"`, "not of the form"},
		{"version with sign", `"1.0"`, `"+1.0"`, "not of the form"},
		{"version with zero", `"1.0"`, `"01.0"`, "not of the form"},
		{"version long", `"1.0"`, `"` + strings.Repeat("1", 1<<20) + `"`, "not of the form"},
		{"version missing", `"formatVersion"`, `"format"`, "not of the form"},
		{"version a number", `"1.0"`, `1.0`, "formatVersion"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, string(encoded), tt.old)
			at := strings.Index(string(encoded), tt.old)
			if tt.name == "trailing" {
				at = strings.LastIndex(string(encoded), tt.old)
			}
			_, err := layerdisk.Parse([]byte(string(encoded[:at]) + tt.new + string(encoded[at+len(tt.old):])))
			require.ErrorIs(t, err, layerdisk.ErrCorrupt)
			require.ErrorContains(t, err, tt.want)
			require.Less(t, len(err.Error()), 1000, "message repeats hostile input")
		})
	}
	for _, data := range []string{"", "null", "[]", "{}", "1", "{", `{"formatVersion":"1.0"}`} {
		_, err := layerdisk.Parse([]byte(data))
		require.ErrorIs(t, err, layerdisk.ErrCorrupt, data)
	}
	for i := 0; i < len(encoded)-1; i += 101 { // the last byte is the newline, which JSON does not need
		_, err := layerdisk.Parse(encoded[:i])
		require.ErrorIs(t, err, layerdisk.ErrCorrupt, "cut at %d", i)
	}
	_, err = layerdisk.Parse(make([]byte, layerdisk.MaxIndexBytes+1))
	require.ErrorContains(t, err, "at most")
}

func TestParseVersions(t *testing.T) {
	encoded, err := layerdisk.Encode(*sealed(t))
	require.NoError(t, err)
	// What a later minor version adds is ignored, wherever it is.
	newer := strings.ReplaceAll(string(encoded), `"1.0"`, `"1.9","signature":{"size":"unknown"}`)
	newer = strings.ReplaceAll(newer, `"number":`, `"blocks":[1,2],"number":`)
	ix, err := layerdisk.Parse([]byte(newer))
	require.NoError(t, err)
	require.Equal(t, "1.9", ix.FormatVersion)
	// Of another major version nothing is read, so nothing else in it can be wrong.
	_, err = layerdisk.Parse([]byte(`{"formatVersion":"2.3","uuid":7,"layers":"elsewhere"}`))
	require.ErrorIs(t, err, layerdisk.ErrVersion)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	require.NotErrorIs(t, err, layerdisk.ErrCorrupt)
	require.ErrorContains(t, err, "version 2.3")
	require.ErrorContains(t, err, "version 1.x")
}

func TestSealRefuses(t *testing.T) {
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
	ix.Created = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)
	_, err := layerdisk.Seal(ix)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.Empty(t, ix.UUID, "a refused index was changed")
}

// TestSealUUID wants another UUID for every other content.
func TestSealUUID(t *testing.T) {
	uuids := map[string]string{}
	for name, change := range map[string]func(*layerdisk.Index){
		"nothing":     func(*layerdisk.Index) {},
		"created":     func(ix *layerdisk.Index) { ix.Created = ix.Created.Add(1) },
		"file system": func(ix *layerdisk.Index) { ix.FileSystem = layerdisk.FileSystemExt4 },
		"attributes":  func(ix *layerdisk.Index) { ix.Layers[3].Attributes = "blake3:" + strings.Repeat("1", 64) },
		"inodes":      func(ix *layerdisk.Index) { ix.Layers[3].Inodes++ },
		"reference":   func(ix *layerdisk.Index) { ix.Images[0].Reference += "1" },
	} {
		ix := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
		change(ix)
		_, err := layerdisk.Seal(ix)
		require.NoError(t, err)
		require.NotContains(t, uuids, ix.UUID, name)
		uuids[ix.UUID] = name
	}
	zoned := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
	zoned.Created = zoned.Created.In(time.FixedZone("", 3600))
	_, err := layerdisk.Seal(zoned)
	require.NoError(t, err)
	require.Equal(t, "nothing", uuids[zoned.UUID], "the time zone is no content")
}
