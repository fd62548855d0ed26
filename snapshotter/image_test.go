package snapshotter_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// layer is one layer of a forged image.
type layer struct {
	tar     []byte
	blob    []byte
	diffID  digest.Digest
	blobID  digest.Digest
	chainID digest.Digest // within its image
	below   digest.Digest // chain ID of what it lies on
	owner   int           // of the root directory, which unpacking leaves alone
}

// entry is one file of a layer.
type entry struct {
	name string
	body string
	mode int64
	uid  int
	kind byte
	link string
	pax  map[string]string
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, Typeflag: e.kind, Linkname: e.link, Size: int64(len(e.body)),
			ModTime: time.Unix(1700000000, 0), PAXRecords: e.pax, Format: tar.FormatPAX,
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if e.kind == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write([]byte(e.body))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// image is a forged image, with the registry that has it.
type image struct {
	name     string
	layers   []layer
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	blobs    map[digest.Digest][]byte
}

// forge makes an image of layer tars. annotate may add what a hostile manifest would say about a layer.
func forge(t testing.TB, name string, annotate func(i int) map[string]string, tars ...[]byte) *image {
	t.Helper()
	im := &image{name: name, blobs: map[digest.Digest][]byte{}}
	var diffIDs []digest.Digest
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, raw := range tars {
		var buf bytes.Buffer
		z := gzip.NewWriter(&buf)
		_, err := z.Write(raw)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		diffIDs = append(diffIDs, digest.FromBytes(raw))
		l := layer{
			tar: raw, blob: buf.Bytes(), diffID: diffIDs[i], blobID: digest.FromBytes(buf.Bytes()),
			chainID: identity.ChainID(diffIDs[:i+1]),
		}
		if i > 0 {
			l.below = im.layers[i-1].chainID
		}
		im.layers = append(im.layers, l)
		im.blobs[l.blobID] = l.blob
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.blobID, Size: int64(len(l.blob))}
		if annotate != nil {
			d.Annotations = annotate(i)
		}
		m.Layers = append(m.Layers, d)
	}
	im.config = im.add(t, ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}, Author: name,
	})
	m.Config = im.config
	im.manifest = im.add(t, ocispec.MediaTypeImageManifest, m)
	return im
}

func (im *image) add(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	im.blobs[d.Digest] = b
	return d
}

func (im *image) top() digest.Digest { return im.layers[len(im.layers)-1].chainID }

// fetch puts a blob of the image into a content store, as a pull does, and returns its children.
func (im *image) fetch(ctx context.Context, cs content.Store, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	b, ok := im.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("registry has no %s", d.Digest)
	}
	err := content.WriteBlob(ctx, cs, "fetch-"+d.Digest.String(), bytes.NewReader(b),
		ocispec.Descriptor{Digest: d.Digest, Size: d.Size}, content.WithLabels(map[string]string{"containerd.io/gc.root": "test"}))
	if err != nil {
		return nil, err
	}
	return images.Children(ctx, cs, d)
}

// sampleTars are five layers that between them have what unpacking can get wrong.
func sampleTars(t testing.TB) [][]byte {
	t.Helper()
	dir := func(name string) entry { return entry{name: name, kind: tar.TypeDir} }
	return [][]byte{
		tarOf(t, dir("etc/"), entry{name: "etc/passwd", body: "root\n"}, entry{name: "etc/shadow", body: "x\n", mode: 0o600},
			dir("opaque/"), entry{name: "opaque/old", body: "old\n"}, dir("bin/"), entry{name: "bin/su", body: "su\n", mode: 0o4755},
			entry{name: "gone", body: "gone\n"}, entry{name: "owned", body: "o\n", uid: 100001}),
		tarOf(t, entry{name: ".wh.gone"}, dir("opaque/"), entry{name: "opaque/.wh..wh..opq"}, entry{name: "opaque/new", body: "new\n"},
			entry{name: "capable", body: "c\n", pax: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}),
		tarOf(t, entry{name: "link", kind: tar.TypeSymlink, link: "etc/passwd"}, entry{name: "hard1", body: "hard\n"},
			entry{name: "hard2", kind: tar.TypeLink, link: "hard1"}, entry{name: "etc/.wh.shadow"}),
		tarOf(t, entry{name: "etc/passwd", body: "root\nuser\n"}, entry{name: "gone", body: "back\n"}, dir("empty/")),
		tarOf(t, entry{name: "top", body: "top\n"}, entry{name: "opaque/.wh.new"}),
	}
}
