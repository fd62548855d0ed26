package builder

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// forgedLayer is a layer as a test wants it.
type forgedLayer struct {
	tar       []byte
	blob      []byte
	mediaType string
	// diffID, digest and size, if set, are lies for config and manifest.
	diffID, digest digest.Digest
	size           int64
}

func (l forgedLayer) descriptor() ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: l.mediaType, Digest: digest.FromBytes(l.blob), Size: int64(len(l.blob))}
	if l.digest != "" {
		d.Digest = l.digest
	}
	if l.size != 0 {
		d.Size = l.size
	}
	return d
}

func (l forgedLayer) trueDiffID() digest.Digest {
	if l.diffID != "" {
		return l.diffID
	}
	return digest.FromBytes(l.tar)
}

// tarContent is what is in a layer, by path; a path that ends in a slash is a directory.
type tarContent map[string]string

func makeTar(t testing.TB, content tarContent) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range sortedKeys(content) {
		hdr := &tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(1700000000, 123456789), Format: tar.FormatPAX, Size: int64(len(content[name])), Typeflag: tar.TypeReg}
		if strings.HasSuffix(name, "/") {
			hdr.Typeflag, hdr.Mode, hdr.Size = tar.TypeDir, 0o755, 0
		}
		require.NoError(t, w.WriteHeader(hdr))
		if hdr.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(content[name]))
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func gzipLayer(t testing.TB, raw []byte) forgedLayer {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = w.Write(raw)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return forgedLayer{tar: raw, blob: buf.Bytes(), mediaType: ocispec.MediaTypeImageLayerGzip}
}

func zstdLayer(t testing.TB, raw []byte) forgedLayer {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return forgedLayer{tar: raw, blob: w.EncodeAll(raw, nil), mediaType: ocispec.MediaTypeImageLayerZstd}
}

func plainLayer(raw []byte) forgedLayer {
	return forgedLayer{tar: raw, blob: raw, mediaType: ocispec.MediaTypeImageLayer}
}

// forgedImage is a manifest with all it refers to.
type forgedImage struct {
	manifest []byte
	config   []byte
	layers   []forgedLayer
	platform ocispec.Platform
}

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

func forgeImage(t testing.TB, platform ocispec.Platform, created time.Time, layers ...forgedLayer) forgedImage {
	t.Helper()
	config := ocispec.Image{Created: &created, Platform: platform, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.trueDiffID())
		manifest.Layers = append(manifest.Layers, l.descriptor())
	}
	img := forgedImage{layers: layers, platform: platform}
	img.config = mustJSON(t, config)
	manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(img.config), Size: int64(len(img.config))}
	img.manifest = mustJSON(t, manifest)
	return img
}

func (i forgedImage) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(i.manifest), Size: int64(len(i.manifest)), Platform: &i.platform}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return b
}

// testRegistry is go-containerregistry's own, in this process, with a count of requests.
type testRegistry struct {
	*httptest.Server
	inner http.Handler
	// wrap, if set, may answer instead of the registry.
	wrap func(w http.ResponseWriter, r *http.Request, next http.Handler)

	mu   sync.Mutex
	gets map[string]int
}

func newTestRegistry(t testing.TB) *testRegistry {
	t.Helper()
	r := newHandler()
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func newHandler() *testRegistry {
	return &testRegistry{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0))), gets: make(map[string]int)}
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
		r.mu.Lock()
		r.gets[path.Base(req.URL.Path)]++
		r.mu.Unlock()
	}
	if r.wrap != nil {
		r.wrap(w, req, r.inner)
		return
	}
	r.inner.ServeHTTP(w, req)
}

// blobGets is how often each blob was fetched.
func (r *testRegistry) blobGets(d digest.Digest) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gets[d.String()]
}

func (r *testRegistry) host() string { return r.Listener.Addr().String() }

// put stores by the registry's API, but not over the network.
func (r *testRegistry) put(t testing.TB, method, target, contentType string, body []byte) {
	t.Helper()
	req := httptest.NewRequest(method, target, bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, req)
	require.Less(t, w.Code, 300, "%s %s: %s", method, target, w.Body)
}

func (r *testRegistry) putBlob(t testing.TB, repo string, b []byte) {
	t.Helper()
	r.put(t, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repo, digest.FromBytes(b)), "application/octet-stream", b)
}

func (r *testRegistry) putImage(t testing.TB, repo, tag string, img forgedImage) string {
	t.Helper()
	for _, l := range img.layers {
		r.putBlob(t, repo, l.blob)
	}
	r.putBlob(t, repo, img.config)
	r.put(t, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, tag), ocispec.MediaTypeImageManifest, img.manifest)
	return fmt.Sprintf("%s/%s:%s", r.host(), repo, tag)
}

// putIndex stores the images under their digests and an index of them under the tag.
func (r *testRegistry) putIndex(t testing.TB, repo, tag string, images ...forgedImage) string {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, img := range images {
		d := img.descriptor()
		r.putImage(t, repo, d.Digest.String(), img)
		index.Manifests = append(index.Manifests, d)
	}
	r.put(t, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, tag), ocispec.MediaTypeImageIndex, mustJSON(t, index))
	return fmt.Sprintf("%s/%s:%s", r.host(), repo, tag)
}

// privateTmp is a layer with /tmp of mode 0700.
func privateTmp(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o700}))
	require.NoError(t, w.Close())
	return buf.Bytes()
}
