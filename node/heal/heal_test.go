package heal_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/node/heal"
)

const name, namespace = "registry.example/app:1", "ns"

// daemon is containerd's own content and image stores.
type daemon struct {
	*testing.T
	ctx     context.Context //nolint:containedctx // of the namespace
	content content.Store
	images  images.Store
	blobs   [][]byte
	diffIDs []digest.Digest
	// fetches is how often content was fetched; fetch, if not nil, is what comes of it.
	fetches int
	fetch   func() error
}

// newDaemon has one image of two layers, without the blobs of these.
func newDaemon(t *testing.T) *daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	store, err := local.NewStore(filepath.Join(dir, "content"))
	require.NoError(t, err)
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	mdb := metadata.NewDB(db, store, nil)
	require.NoError(t, mdb.Init(t.Context()))
	d := &daemon{T: t, ctx: namespaces.WithNamespace(context.WithoutCancel(t.Context()), namespace), content: mdb.ContentStore(), images: metadata.NewImageStore(mdb)}
	require.NoError(t, metadata.NewDB(db, store, nil).Update(func(tx *bolt.Tx) error {
		return metadata.NewNamespaceStore(tx).Create(d.ctx, namespace, nil)
	}))
	for _, files := range []map[string]string{{"a": "from the lowest", "gone": "x"}, {".wh.gone": "", "b": "from the top"}} {
		plain := archiveOf(t, files)
		d.diffIDs = append(d.diffIDs, digest.FromBytes(plain))
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err := w.Write(plain)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		d.blobs = append(d.blobs, z.Bytes())
	}
	config := d.put(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platforms.DefaultSpec(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: d.diffIDs},
	})
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config}
	for _, b := range d.blobs {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(b), Size: int64(len(b))})
	}
	_, err = d.images.Create(d.ctx, images.Image{Name: name, Target: d.put(ocispec.MediaTypeImageManifest, m)})
	require.NoError(t, err)
	return d
}

func archiveOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(text)), Mode: 0o640}))
		_, err := w.Write([]byte(text))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func (d *daemon) put(mediaType string, v any) ocispec.Descriptor {
	d.Helper()
	raw, err := json.Marshal(v)
	require.NoError(d, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	require.NoError(d, content.WriteBlob(d.ctx, d.content, desc.Digest.String(), bytes.NewReader(raw), desc))
	return desc
}

// bring puts a blob into the content store.
func (d *daemon) bring(i int) {
	d.Helper()
	desc := ocispec.Descriptor{Digest: digest.FromBytes(d.blobs[i]), Size: int64(len(d.blobs[i]))}
	require.NoError(d, content.WriteBlob(d.ctx, d.content, desc.Digest.String(), bytes.NewReader(d.blobs[i]), desc))
}

// Fetch implements heal.Fetcher.
func (d *daemon) Fetch(ctx context.Context, img images.Image) error {
	d.fetches++
	require.Equal(d, name, img.Name)
	ns, err := namespaces.NamespaceRequired(ctx)
	require.NoError(d, err)
	require.Equal(d, namespace, ns)
	if d.fetch != nil {
		return d.fetch()
	}
	for i := range d.blobs {
		d.bring(i)
	}
	return nil
}

func (d *daemon) healer() *heal.Healer {
	return heal.New(heal.Containerd{
		Namespaces: func(context.Context) ([]string, error) { return []string{namespace}, nil },
		Images:     d.images, Content: d.content, Fetcher: d,
	}, platforms.Default())
}

func (d *daemon) layer(i int, parents ...string) heal.Layer {
	return heal.Layer{ChainID: identity.ChainID(d.diffIDs[:i+1]), DiffID: d.diffIDs[i], Dir: d.TempDir(), Parents: parents}
}

// A layer comes from containerd's content store if that has it, and otherwise from whatever containerd fetches;
// whiteouts become overlay's in every layer but the lowest.
func TestMakeLayer(t *testing.T) {
	d := newDaemon(t)
	d.bring(0)
	lowest := d.layer(0)
	require.NoError(t, d.healer().MakeLayer(t.Context(), lowest))
	require.Zero(t, d.fetches)
	got, err := os.ReadFile(filepath.Join(lowest.Dir, "a"))
	require.NoError(t, err)
	require.Equal(t, "from the lowest", string(got))

	top := d.layer(1, lowest.Dir)
	require.NoError(t, d.healer().MakeLayer(t.Context(), top))
	require.Equal(t, 1, d.fetches)
	got, err = os.ReadFile(filepath.Join(top.Dir, "b"))
	require.NoError(t, err)
	require.Equal(t, "from the top", string(got))
	whiteout, err := os.Lstat(filepath.Join(top.Dir, "gone"))
	require.NoError(t, err)
	require.Equal(t, os.ModeDevice|os.ModeCharDevice, whiteout.Mode().Type())
}

func TestMakeLayerFails(t *testing.T) {
	t.Run("registry is down", func(t *testing.T) {
		d := newDaemon(t)
		d.fetch = func() error { return errors.New("connection refused") }
		l := d.layer(0)
		err := d.healer().MakeLayer(t.Context(), l)
		for _, want := range []string{l.DiffID.String(), name, namespace, "connection refused", "attach a disk that has the layer"} {
			require.ErrorContains(t, err, want)
		}
	})
	t.Run("the blob holds another layer", func(t *testing.T) {
		d := newDaemon(t)
		// A manifest that lies about its layer: blob 0 is in the place of blob 1.
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: d.put(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: platforms.DefaultSpec(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: d.diffIDs[1:]}}),
			Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(d.blobs[0]), Size: int64(len(d.blobs[0]))}}}
		_, err := d.images.Update(d.ctx, images.Image{Name: name, Target: d.put(ocispec.MediaTypeImageManifest, m)})
		require.NoError(t, err)
		d.bring(0)
		l := d.layer(1)
		l.ChainID = d.diffIDs[1]
		err = d.healer().MakeLayer(t.Context(), l)
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		entries, err := os.ReadDir(l.Dir)
		require.NoError(t, err)
		require.Empty(t, entries, "what was not proved is not left")
	})
	t.Run("no image has it", func(t *testing.T) {
		d := newDaemon(t)
		l := d.layer(0)
		l.DiffID = digest.FromString("another")
		require.ErrorIs(t, d.healer().MakeLayer(t.Context(), l), errdefs.ErrNotFound)
		require.Zero(t, d.fetches)
	})
	t.Run("given up", func(t *testing.T) {
		d := newDaemon(t)
		ctx, cancel := context.WithCancel(t.Context())
		d.fetch = func() error { cancel(); return ctx.Err() }
		require.ErrorIs(t, d.healer().MakeLayer(ctx, d.layer(0)), context.Canceled)
	})
}
