package builder

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk/tree"
)

// serveBlob makes the registry answer one blob in another way.
func (r *testRegistry) serveBlob(d digest.Digest, answer func(w http.ResponseWriter, req *http.Request, next http.Handler)) {
	r.wrap = func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if req.Method == http.MethodGet && path.Base(req.URL.Path) == d.String() {
			answer(w, req, next)
			return
		}
		next.ServeHTTP(w, req)
	}
}

func TestBuildRefusesMismatch(t *testing.T) {
	raw := makeTar(t, tarContent{"file": bigContent(t, 300<<10)})
	good := gzipLayer(t, raw)
	other := digest.FromString("other")
	for name, c := range map[string]struct {
		layer func() forgedLayer
		serve func(w http.ResponseWriter, req *http.Request, next http.Handler)
		want  []string
	}{
		"diff ID": {layer: func() forgedLayer { l := good; l.diffID = other; return l },
			want: []string{"diff ID " + digest.FromBytes(raw).String(), other.String()}},
		"damaged blob": {layer: func() forgedLayer { return good },
			serve: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				b := bytes.Clone(good.blob)
				b[len(b)/2] ^= 1
				_, _ = w.Write(b)
			}, want: []string{"another digest", good.descriptor().Digest.String()}},
		"another blob": {layer: func() forgedLayer { return good },
			serve: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				_, _ = w.Write(bytes.Repeat([]byte("no archive "), len(good.blob)/11+1)[:len(good.blob)])
			}, want: []string{"another digest"}},
		"short blob with a true Content-Length": {layer: func() forgedLayer { return good },
			serve: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write(good.blob[:1000]) },
			want:  []string{fmt.Sprint("its manifest says ", len(good.blob))}},
		"connection always ends early": {layer: func() forgedLayer { return good },
			serve: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Content-Length", strconv.Itoa(len(good.blob)))
				_, _ = w.Write(good.blob[:1000])
			}, want: []string{"fetch blob"}},
		"longer blob": {layer: func() forgedLayer { return good },
			serve: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				_, _ = w.Write(append(bytes.Clone(good.blob), "more"...))
			}, want: []string{good.descriptor().Digest.String()}},
		"size in the manifest too small": {layer: func() forgedLayer { l := good; l.size = 100; return l }, want: []string{"100"}},
		"size in the manifest too large": {layer: func() forgedLayer { l := good; l.size = 1 << 40; return l }, want: []string{"1099511627776"}},
		"archive cut short":              {layer: func() forgedLayer { return gzipLayer(t, raw[:len(raw)/2]) }, want: []string{"unexpected EOF"}},
		"bzip2":                          {layer: func() forgedLayer { return plainLayer([]byte("BZh91AY&SY...........")) }, want: []string{"bzip2"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, program := range []*string{nil, new(string)} {
				r := newTestRegistry(t)
				layer := c.layer()
				innocent := gzipLayer(t, makeTar(t, tarContent{"innocent": bigContent(t, 100<<10)}))
				ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, innocent, layer))
				if c.serve != nil {
					r.serveBlob(layer.descriptor().Digest, c.serve)
				}
				o := buildOptions(t, ref)
				o.gzipProgram = program
				_, err := Build(t.Context(), o)
				require.Error(t, err)
				for _, want := range append(c.want, "layer 1 of "+ref) {
					require.ErrorContains(t, err, want)
				}
				requireEmptyDir(t, o)
			}
		})
	}
}

// TestBuildAcceptsOddGzip: several members in one blob, as eStargz has them, a wrong media type, rubbish behind the
// end.
func TestBuildAcceptsOddGzip(t *testing.T) {
	raw := makeTar(t, tarContent{"a": bigContent(t, 3<<20), "b": strings.Repeat("b", 100)})
	var blob []byte
	for rest := raw; len(rest) > 0; {
		n := min(len(rest), 100<<10)
		blob = append(blob, gzipLayer(t, rest[:n]).blob...)
		rest = rest[n:]
	}
	layer := forgedLayer{tar: raw, blob: blob, mediaType: ocispec.MediaTypeImageLayerGzip}
	// containerd goes by the bytes, not by the media type; so do we.
	mislabelled := gzipLayer(t, makeTar(t, tarContent{"c": "c"}))
	mislabelled.mediaType = ocispec.MediaTypeImageLayerZstd
	r := newTestRegistry(t)
	trailed := gzipLayer(t, makeTar(t, tarContent{"d": bigContent(t, 1<<20)}))
	trailed.blob = append(trailed.blob, bytes.Repeat([]byte("x"), 500<<10)...)
	ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, layer, mislabelled, trailed))
	for _, program := range []*string{nil, new(string)} {
		o := buildOptions(t, ref)
		o.gzipProgram = program
		_, err := Build(t.Context(), o)
		require.NoError(t, err)
		requireSound(t, o.Output.Path)
	}
}

func TestBuildResumesBrokenBlob(t *testing.T) {
	layer := gzipLayer(t, makeTar(t, tarContent{"file": bigContent(t, 3<<20)}))
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges %t", ranges), func(t *testing.T) {
			r := newTestRegistry(t)
			ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, layer))
			var sent atomic.Int64
			var requests atomic.Int64
			r.serveBlob(layer.descriptor().Digest, func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
				from := 0
				if ranges {
					_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from)
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(layer.blob)-from))
				if from > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(layer.blob)-1, len(layer.blob)))
					w.WriteHeader(http.StatusPartialContent)
				}
				end := len(layer.blob)
				if n := int(requests.Add(1)); n <= 3 {
					end = min(end, n*900<<10)
				}
				n, _ := w.Write(layer.blob[min(from, end):end])
				sent.Add(int64(n))
				if end < len(layer.blob) {
					panic(http.ErrAbortHandler)
				}
			})
			o := buildOptions(t, ref)
			_, err := Build(t.Context(), o)
			require.NoError(t, err)
			require.Equal(t, int64(4), requests.Load())
			if ranges {
				require.Less(t, sent.Load(), int64(len(layer.blob))+4<<20)
			}
		})
	}
}

func TestBuildRetriesBusyRegistry(t *testing.T) {
	r := newTestRegistry(t)
	layer := gzipLayer(t, makeTar(t, tarContent{"file": "x"}))
	ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, layer))
	var n atomic.Int64
	r.wrap = func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if n.Add(1)%3 != 0 { // containerd's client gives up after two equal answers
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, req)
	}
	_, err := Build(t.Context(), buildOptions(t, ref))
	require.NoError(t, err)

	r.wrap = func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, err = Build(t.Context(), buildOptions(t, ref))
	require.ErrorContains(t, err, "503")
}

func TestBuildCancelled(t *testing.T) {
	r := newTestRegistry(t)
	var layers []forgedLayer
	for i := range 6 {
		layers = append(layers, gzipLayer(t, makeTar(t, tarContent{fmt.Sprint(i): bigContent(t, 12<<20)})))
	}
	ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, layers...))
	for _, fs := range []string{"erofs", "ext4"} {
		for _, stop := range []EventKind{EventPlanned, EventLayerStarted, EventLayerProgress, EventLayerDone, EventFinishing} {
			t.Run(fs+" "+string(stop), func(t *testing.T) {
				if fs == "ext4" {
					needRoot(t)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				o := buildOptions(t, ref)
				o.Output.FileSystem = fs
				o.Progress = func(e Event) {
					if e.Kind == stop || stop == EventLayerProgress && e.Kind == EventLayerDone && e.Layer.Number == 1 {
						cancel()
					}
				}
				_, err := Build(ctx, o)
				require.ErrorIs(t, err, context.Canceled)
				requireEmptyDir(t, o)
			})
		}
	}
}

func TestBuildRefusesImages(t *testing.T) {
	layer := gzipLayer(t, makeTar(t, tarContent{"file": "x"}))
	withType := func(mediaType string) forgedLayer { l := layer; l.mediaType = mediaType; return l }
	for name, c := range map[string]struct {
		make func(t *testing.T, r *testRegistry) string
		want string
		is   error
	}{
		"foreign layer": {func(t *testing.T, r *testRegistry) string {
			return r.putImage(t, "a", "1", forgeImage(t, amd64, created, withType("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")))
		}, "foreign", errdefs.ErrNotImplemented},
		"non-distributable layer": {func(t *testing.T, r *testRegistry) string {
			return r.putImage(t, "a", "1", forgeImage(t, amd64, created, withType("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")))
		}, "foreign", errdefs.ErrNotImplemented},
		"encrypted layer": {func(t *testing.T, r *testRegistry) string {
			return r.putImage(t, "a", "1", forgeImage(t, amd64, created, withType("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")))
		}, "no layer that can be unpacked", errdefs.ErrNotImplemented},
		"other platform": {func(t *testing.T, r *testRegistry) string {
			return r.putImage(t, "a", "1", forgeImage(t, ocispec.Platform{OS: "linux", Architecture: "s390x"}, created, layer))
		}, "it is for: linux/s390x", errdefs.ErrNotFound},
		"index without the platform": {func(t *testing.T, r *testRegistry) string {
			return r.putIndex(t, "a", "1", forgeImage(t, ocispec.Platform{OS: "linux", Architecture: "s390x"}, created, layer),
				forgeImage(t, ocispec.Platform{OS: "linux", Architecture: "ppc64le"}, created, layer))
		}, "it is for: linux/s390x, linux/ppc64le", errdefs.ErrNotFound},
		"schema 1": {func(t *testing.T, r *testRegistry) string {
			r.put(t, http.MethodPut, "/v2/a/manifests/1", "application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1}`))
			return r.host() + "/a:1"
		}, "schema 1", errdefs.ErrNotImplemented},
		"missing":       {func(_ *testing.T, r *testRegistry) string { return r.host() + "/a:none" }, "not found", errdefs.ErrNotFound},
		"bad reference": {func(*testing.T, *testRegistry) string { return "team/UPPER" }, "team/UPPER", errdefs.ErrInvalidArgument},
		"other artifact": {func(t *testing.T, r *testRegistry) string {
			img := forgeImage(t, amd64, created, layer)
			img.manifest = []byte(strings.Replace(string(img.manifest), ocispec.MediaTypeImageConfig, "application/vnd.oci.empty.v1+json", 1))
			return r.putImage(t, "a", "1", img)
		}, "no container image", errdefs.ErrNotImplemented},
		"layers and diff IDs differ in number": {func(t *testing.T, r *testRegistry) string {
			img := forgeImage(t, amd64, created, layer, layer)
			one := forgeImage(t, amd64, created, layer)
			img.manifest = []byte(strings.Replace(string(one.manifest), digest.FromBytes(one.config).String(), digest.FromBytes(img.config).String(), 1))
			img.manifest = []byte(strings.Replace(string(img.manifest), fmt.Sprintf(`"size":%d`, len(one.config)), fmt.Sprintf(`"size":%d`, len(img.config)), 1))
			return r.putImage(t, "a", "1", img)
		}, "has 1 layers, its config 2", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTestRegistry(t)
			o := buildOptions(t, c.make(t, r))
			_, err := Build(t.Context(), o)
			require.ErrorContains(t, err, c.want)
			require.ErrorIs(t, err, c.is)
			requireEmptyDir(t, o)
		})
	}
}

func TestBuildChoosesPlatforms(t *testing.T) {
	arm64 := ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	shared := gzipLayer(t, makeTar(t, tarContent{"shared": "x"}))
	forAMD := forgeImage(t, amd64, created, shared, gzipLayer(t, makeTar(t, tarContent{"amd": "x"})))
	forARM := forgeImage(t, arm64, created, shared, gzipLayer(t, makeTar(t, tarContent{"arm": "x"})))
	attestation := forgeImage(t, ocispec.Platform{OS: "unknown", Architecture: "unknown"}, created, shared)
	r := newTestRegistry(t)
	ref := r.putIndex(t, "multi", "1", forAMD, attestation, forARM)

	o := buildOptions(t, ref)
	o.Platforms = []ocispec.Platform{{OS: "linux", Architecture: "arm64"}, amd64}
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	ix := readDisk(t, o.Output.Path)
	require.Len(t, ix.Images, 2)
	require.Len(t, ix.Layers, 3)
	require.Equal(t, forARM.descriptor().Digest, ix.Images[0].Manifest.Digest)
	require.Equal(t, "arm64", ix.Images[0].Platform.Architecture)
	require.Equal(t, forAMD.descriptor().Digest, ix.Images[1].Manifest.Digest)
	require.NotNil(t, ix.Images[1].IndexDescriptor)
	require.Equal(t, 1, r.blobGets(shared.descriptor().Digest))
}

// TestBuildRefusesBombs: what decompresses to far more than anybody would fetch ends at the limit, in a file, behind
// the end of the archive, and in entries.
func TestBuildRefusesBombs(t *testing.T) {
	many := make(tarContent)
	for i := range 2000 {
		many[fmt.Sprint(i)] = ""
	}
	for name, raw := range map[string][]byte{
		"file":    makeTar(t, tarContent{"zeros": strings.Repeat("\x00", 80<<20)}),
		"padding": append(makeTar(t, tarContent{"a": "a"}), make([]byte, 80<<20)...),
		"entries": makeTar(t, many),
	} {
		for _, layer := range []forgedLayer{gzipLayer(t, raw), zstdLayer(t, raw)} {
			r := newTestRegistry(t)
			o := buildOptions(t, r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, layer)))
			o.Limits = tree.Limits{MaxBytes: 50 << 20, MaxEntries: 1000}
			_, err := Build(t.Context(), o)
			require.ErrorIs(t, err, tree.ErrLimit, name)
			requireEmptyDir(t, o)
		}
	}
}
