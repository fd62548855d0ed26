package buildproc_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
)

// hub is a registry that can be slow and can want a password.
type hub struct {
	*httptest.Server
	password string

	mu   sync.Mutex
	gets map[string]int
	// stuck, if not nil, holds up blobs until it is closed.
	stuck chan struct{}
	asked chan struct{}
}

func newHub(t *testing.T, password string) *hub {
	h := &hub{password: password, gets: map[string]int{}, asked: make(chan struct{}, 100)}
	h.Server = httptest.NewServer(h.handler())
	t.Cleanup(h.Close)
	return h
}

// newTLSHub is one whose certificate nobody knows.
func newTLSHub(t *testing.T, password string) *hub {
	h := &hub{password: password, gets: map[string]int{}, asked: make(chan struct{}, 100)}
	h.Server = httptest.NewUnstartedServer(h.handler())
	h.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that the tests want to fail
	h.StartTLS()
	t.Cleanup(h.Close)
	return h
}

func (h *hub) handler() http.Handler {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, p, _ := r.BasicAuth(); h.password != "" && p != h.password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			h.mu.Lock()
			h.gets[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
			stuck := h.stuck
			h.mu.Unlock()
			if stuck != nil {
				h.asked <- struct{}{}
				select {
				case <-stuck:
				case <-r.Context().Done():
					return
				}
			}
		}
		inner.ServeHTTP(w, r)
	})
}

func (h *hub) host() string { return h.Listener.Addr().String() }

func layer(t *testing.T, file string, size int) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	content := make([]byte, size)
	_, _ = rand.Read(content)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o644, Size: int64(size)}))
	_, err := w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	require.NoError(t, err)
	return l
}

func (h *hub) push(t *testing.T, repo string, layers ...v1.Layer) string {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	require.NoError(t, err)
	cfg, err := img.ConfigFile()
	require.NoError(t, err)
	cfg.OS, cfg.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, cfg)
	require.NoError(t, err)
	ref, err := name.ParseReference(h.host()+"/"+repo, name.Insecure)
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "u", Password: h.password}), remote.WithTransport(h.Client().Transport)))
	return h.host() + "/" + repo
}

func (h *hub) spec(images ...string) imagesnapshot.Spec {
	return imagesnapshot.Spec{
		Images: images, Platforms: []string{"linux/amd64"},
		Registries: []imagesnapshot.Registry{{Server: h.host(), PlainHTTP: true}},
	}
}
