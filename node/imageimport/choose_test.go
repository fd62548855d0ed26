package imageimport_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/snapshotter"
)

// The disk says what its images are called and made of. What containerd would not find so is refused, and nothing is
// written.
func TestRefused(t *testing.T) {
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64"}
	for name, c := range map[string]struct {
		image  layerdisktest.Image
		change func(*layerdisk.Image)
		allow  []string
		reason string
	}{
		"platform": {image: layerdisktest.Image{Reference: app, Platform: arm, Layers: []string{"a"}}, reason: "for other platforms only"},
		"pattern":  {image: layerdisktest.Image{Reference: app, Layers: []string{"a"}}, allow: []string{"registry.example.com/*"}, reason: "import.images"},
		"digest of others": {
			image:  layerdisktest.Image{Reference: "docker.io/library/app@" + digest.FromString("x").String(), Layers: []string{"a"}},
			reason: "another digest",
		},
		"index without the image": {
			image: layerdisktest.Image{Reference: app, Layers: []string{"a"}, WithIndex: true},
			change: func(img *layerdisk.Image) {
				img.RawIndex = []byte(`{"schemaVersion":2,"manifests":[]}`)
				img.IndexDescriptor.Digest, img.IndexDescriptor.Size = digest.FromBytes(img.RawIndex), int64(len(img.RawIndex))
			},
			reason: "would not find the image",
		},
		"index with what is no digest": {
			image: layerdisktest.Image{Reference: app, Layers: []string{"a"}, WithIndex: true},
			change: func(img *layerdisk.Image) {
				img.RawIndex = []byte(strings.Replace(string(img.RawIndex), `"manifests":[`, `"manifests":[{"digest":"none"},`, 1))
				img.IndexDescriptor.Digest, img.IndexDescriptor.Size = digest.FromBytes(img.RawIndex), int64(len(img.RawIndex))
			},
			reason: "refers to \"none\"",
		},
		"other bytes": {
			image:  layerdisktest.Image{Reference: app, Layers: []string{"a"}},
			change: func(img *layerdisk.Image) { img.RawConfig = []byte(strings.ToUpper(string(img.RawConfig))) },
			reason: "the disk's bytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, snapshotter.ProtocolAuto)
			n.config.Images = c.allow
			ix := layerdisktest.Index(layerdisk.FileSystemEROFS, c.image)
			_, err := layerdisk.Seal(ix)
			require.NoError(t, err)
			if c.change != nil {
				c.change(&ix.Images[0])
			}
			n.attachIndex("d", ix)
			im := n.importer()
			im.Converge(t.Context())
			list, err := im.Status("d", ix.UUID)
			require.NoError(t, err)
			require.Len(t, list, 2)
			require.Equal(t, imageimport.Refused, list[0].Result)
			require.Contains(t, list[0].Reason, c.reason)
			require.Equal(t, []string{"lease berth-imported-" + ix.UUID}, n.has("k8s.io"))
			n.importer().Converge(t.Context())
			require.Len(t, n.told, 2, "told once")
		})
	}
}

// Of several platforms the node's own is registered, and a name with a digest.
func TestPlatformAndDigest(t *testing.T) {
	n := newNode(t, snapshotter.ProtocolAuto)
	byDigest := layerdisktest.Index(layerdisk.FileSystemEROFS, layerdisktest.Image{Reference: app, Layers: []string{"pinned"}}).Images[0].Manifest.Digest
	pinned := "docker.io/library/app@" + byDigest.String()
	ix := n.attach("d",
		layerdisktest.Image{Reference: app, Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"}, Layers: []string{"arm"}},
		layerdisktest.Image{Reference: app, Layers: []string{"amd"}},
		layerdisktest.Image{Reference: pinned, Layers: []string{"pinned"}},
	)
	n.importer().Converge(t.Context())
	i := slices.IndexFunc(ix.Images, func(i layerdisk.Image) bool { return i.Reference == app && i.Platform.Architecture == "amd64" })
	img, err := n.image("k8s.io", app)
	require.NoError(t, err)
	require.Equal(t, ix.Images[i].Manifest.Digest, img.Target.Digest)
	img, err = n.image("k8s.io", pinned)
	require.NoError(t, err)
	require.Equal(t, byDigest, img.Target.Digest)
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true},
		{"*", app, true},
		{app, app, true},
		{"docker.io/*", app, true},
		{"docker.io/*:1", app, true},
		{"*/app:*", app, true},
		{"*app*app*", app, false},
		{"docker.io/library/app", app, false},
		{"docker.io/library/app:1*", app, true},
		{"docker.io/library/app:1*1", app, false},
		{"", app, false},
		{"**1", app, true},
	} {
		require.Equal(t, c.want, imageimport.Matches(c.pattern, c.s), "%q, %q", c.pattern, c.s)
	}
}
