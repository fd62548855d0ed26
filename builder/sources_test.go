package builder

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// writeLayout writes images as an OCI layout below dir, named by containerd's annotation, or by a tag if the name has
// no slash.
func writeLayout(t *testing.T, dir string, images map[string]forgedImage) {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	put := func(b []byte) {
		p := filepath.Join(dir, "blobs/sha256", digest.FromBytes(b).Encoded())
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, b, 0o644))
	}
	for _, name := range sortedKeys(images) {
		img := images[name]
		for _, l := range img.layers {
			put(l.blob)
		}
		put(img.config)
		put(img.manifest)
		d := img.descriptor()
		key := ocispec.AnnotationRefName
		if strings.Contains(name, "/") {
			key = annotationImageName
		}
		d.Annotations = map[string]string{key: name}
		index.Manifests = append(index.Manifests, d)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), mustJSON(t, index), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

// writeTar packs files below dir, and links.
func writeTar(t *testing.T, file, dir string, links map[string]string) {
	t.Helper()
	f, err := os.Create(file)
	require.NoError(t, err)
	w := tar.NewWriter(f)
	require.NoError(t, w.AddFS(os.DirFS(dir)))
	for _, name := range sortedKeys(links) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: links[name]}))
	}
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
}

func buildBytes(t *testing.T, change func(*Options), images ...string) []byte {
	t.Helper()
	o := buildOptions(t, images...)
	if change != nil {
		change(&o)
	}
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	b, err := os.ReadFile(o.Output.Path)
	require.NoError(t, err)
	return b
}

func TestSourcesGiveTheSameDisk(t *testing.T) {
	img := forgeImage(t, amd64, created, gzipLayer(t, makeTar(t, tarContent{"a": bigContent(t, 1<<20)})), plainLayer(makeTar(t, tarContent{"b": "b"})))
	other := forgeImage(t, amd64, created, gzipLayer(t, makeTar(t, tarContent{"c": "c"})))
	r := newTestRegistry(t)
	ref := r.putImage(t, "team/app", "1", img)
	want := buildBytes(t, nil, ref)

	dir := filepath.Join(t.TempDir(), "with:colon")
	writeLayout(t, dir, map[string]forgedImage{ref: img, "2": other})
	require.Equal(t, want, buildBytes(t, nil, "oci:"+dir+":"+ref))
	require.Equal(t, want, buildBytes(t, nil, ref+"=oci:"+dir+":"+img.descriptor().Digest.String()))

	// Saved by a current docker or containerd: a layout in an archive.
	saved := filepath.Join(t.TempDir(), "saved.tar")
	writeTar(t, saved, dir, nil)
	require.Equal(t, want, buildBytes(t, nil, "docker-archive:"+saved+":"+ref))

	for given, want := range map[string]string{
		"oci:" + dir:                            "several images",
		"oci:" + dir + ":3":                     "it has: " + ref + ", 2",
		"oci:" + dir + ":2":                     "NAME=oci:DIR",
		"oci:" + t.TempDir():                    "no OCI image layout",
		"oci:" + filepath.Join(dir, "none"):     "no such file",
		"docker-archive:" + saved + ":none":     "has no image",
		"docker-archive:" + dir + "/index.json": "compressed archives",
		"Bad=oci:" + dir:                        "Bad",
	} {
		o := buildOptions(t, given)
		_, err := Build(t.Context(), o)
		require.ErrorContains(t, err, want)
		requireEmptyDir(t, o)
	}
}

func TestOldDockerArchive(t *testing.T) {
	first, second := makeTar(t, tarContent{"a": "a"}), makeTar(t, tarContent{"b": bigContent(t, 1<<20)})
	img := forgeImage(t, amd64, created, plainLayer(first), gzipLayer(t, second), plainLayer(first))
	r := newTestRegistry(t)
	ref := r.putImage(t, "team/app", "1", img)
	o := buildOptions(t, ref)
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	want := readDisk(t, o.Output.Path)

	dir := t.TempDir()
	write := func(name string, b []byte) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
	}
	config := digest.FromBytes(img.config).Encoded() + ".json"
	write(config, img.config)
	write("1/layer.tar", first)
	write("2/layer.tar", img.layers[1].blob)
	write("manifest.json", mustJSON(t, []dockerManifest{{Config: config, RepoTags: []string{ref}, Layers: []string{"1/layer.tar", "2/layer.tar", "3/layer.tar"}}}))
	saved := filepath.Join(t.TempDir(), "saved.tar")
	writeTar(t, saved, dir, map[string]string{"3/layer.tar": "../1/layer.tar"})

	for _, given := range []string{"docker-archive:" + saved, "docker-archive:" + saved + ":" + ref} {
		o = buildOptions(t, given)
		_, err = Build(t.Context(), o)
		require.NoError(t, err)
		got := readDisk(t, o.Output.Path)
		require.Equal(t, ref, got.Images[0].Reference)
		require.Equal(t, want.Chains, got.Chains)
		require.Equal(t, want.Images[0].ChainID, got.Images[0].ChainID)
		for i, l := range want.Layers {
			require.Equal(t, l.Attributes, got.Layers[i].Attributes)
			require.Equal(t, l.Blobs[0].Digest, got.Layers[i].Blobs[0].Digest)
		}
		requireSound(t, o.Output.Path)
	}
	_, err = Build(t.Context(), buildOptions(t, "docker-archive:"+saved+":other"))
	require.ErrorContains(t, err, "it has: "+ref)
}

func TestNormalise(t *testing.T) {
	digested := "nginx@sha256:" + strings.Repeat("a", 64)
	for given, want := range map[string]string{
		"nginx":                  "docker.io/library/nginx:latest",
		"nginx:1.27":             "docker.io/library/nginx:1.27",
		"bitnami/redis":          "docker.io/bitnami/redis:latest",
		"index.docker.io/a/b":    "docker.io/a/b:latest",
		"localhost:5000/a:b":     "localhost:5000/a:b",
		digested:                 "docker.io/library/" + digested,
		"nginx:1" + digested[5:]: "docker.io/library/" + digested,
	} {
		got, err := normalise(given)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// secured is a registry behind basic authentication.
func secured(t *testing.T, user, password string) *testRegistry {
	t.Helper()
	r := newTestRegistry(t)
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	r.wrap = func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if req.Header.Get("Authorization") != want {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, req)
	}
	return r
}

// Credentials are those of the docker configuration, or come from a credential helper (E-24): no password is written
// down for a build.
func TestCredentials(t *testing.T) {
	img := forgeImage(t, amd64, created, gzipLayer(t, makeTar(t, tarContent{"a": "a"})))
	r := secured(t, "user", "secret-word")
	ref := r.putImage(t, "team/app", "1", img)
	config := t.TempDir()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("DOCKER_CONFIG", config)

	_, err := Build(t.Context(), buildOptions(t, ref))
	require.ErrorContains(t, err, "docker login")

	auth := base64.StdEncoding.EncodeToString([]byte("user:secret-word"))
	write := func(s string, args ...any) {
		require.NoError(t, os.WriteFile(filepath.Join(config, "config.json"), fmt.Appendf(nil, s, args...), 0o600))
	}
	write(`{"auths":{%q:{"auth":%q}}}`, r.host(), auth)
	_, err = Build(t.Context(), buildOptions(t, ref))
	require.NoError(t, err)

	write(`{"auths":{%q:{"auth":%q}}}`, r.host(), base64.StdEncoding.EncodeToString([]byte("user:wrong-word")))
	_, err = Build(t.Context(), buildOptions(t, ref))
	require.ErrorContains(t, err, "docker login")
	require.NotContains(t, err.Error(), "wrong-word")

	helper := fmt.Sprintf("#!/bin/sh\nread host\ncase $host in %s) echo '{\"ServerURL\":\"'$host'\",\"Username\":\"user\",\"Secret\":\"secret-word\"}';; *) echo none; exit 1;; esac\n", r.host())
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	write(`{"credHelpers":{%q:"test"}}`, r.host())
	_, err = Build(t.Context(), buildOptions(t, ref))
	require.NoError(t, err)
}

func TestTokenAuthentication(t *testing.T) {
	img := forgeImage(t, amd64, created, gzipLayer(t, makeTar(t, tarContent{"a": "a"})))
	r := newTestRegistry(t)
	ref := r.putImage(t, "team/app", "1", img)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.FormValue("scope") != "repository:team/app:pull" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(`{"token":"opaque"}`))
	}))
	t.Cleanup(tokens.Close)
	r.wrap = func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if req.Header.Get("Authorization") != "Bearer opaque" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test",scope="repository:team/app:pull"`, tokens.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, req)
	}
	_, err := Build(t.Context(), buildOptions(t, ref))
	require.NoError(t, err)
}

// TestTransport speaks to registries under names that are not those of this machine, because the latter are always
// tried with plain HTTP and any certificate. A mirror leads there.
func TestTransport(t *testing.T) {
	img := forgeImage(t, amd64, created, gzipLayer(t, makeTar(t, tarContent{"a": "a"})))
	plain := newTestRegistry(t)
	plain.putImage(t, "team/app", "1", img)
	tlsRegistry := newHandler()
	tlsRegistry.Server = httptest.NewTLSServer(tlsRegistry)
	t.Cleanup(tlsRegistry.Close)
	tlsRegistry.putImage(t, "team/app", "1", img)

	// hosts.toml of a registry that does not exist, with the real one as its mirror.
	hosts := t.TempDir()
	mirror := func(registry, content string) {
		require.NoError(t, os.MkdirAll(filepath.Join(hosts, registry), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(hosts, registry, "hosts.toml"), []byte(content), 0o644))
	}
	mirror("mirrored.invalid", fmt.Sprintf("server = \"https://mirrored.invalid\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", plain.host()))
	mirror("secure.invalid", fmt.Sprintf("[host.\"https://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", tlsRegistry.host()))
	withHosts := func(o *Options) { o.Registry.HostsDir = hosts }

	want := buildBytes(t, nil, "mirrored.invalid/team/app:1=oci:"+func() string {
		dir := t.TempDir()
		writeLayout(t, dir, map[string]forgedImage{"1": img})
		return dir
	}())
	require.Equal(t, want, buildBytes(t, withHosts, "mirrored.invalid/team/app:1"))

	o := buildOptions(t, "secure.invalid/team/app:1")
	o.Registry.HostsDir = hosts
	_, err := Build(t.Context(), o)
	require.ErrorContains(t, err, "certificate")
	require.ErrorContains(t, err, "--insecure-skip-verify")
	for _, list := range [][]string{{"other.invalid", "secure.invalid"}, {"*"}} {
		o = buildOptions(t, "secure.invalid/team/app:1")
		o.Registry.HostsDir, o.Registry.InsecureSkipVerify = hosts, list
		_, err = Build(t.Context(), o)
		require.NoError(t, err)
	}

	client := newRegistryClient(t.Context(), RegistryOptions{PlainHTTP: []string{"plain.invalid:5000"}}, defaultRetryPolicy())
	found, err := client.registryHosts("plain.invalid:5000")
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, "http", found[0].Scheme)
	found, err = client.registryHosts("other.invalid:5000")
	require.NoError(t, err)
	require.Equal(t, "https", found[0].Scheme)
}

func TestStalledConnection(t *testing.T) {
	layer := gzipLayer(t, makeTar(t, tarContent{"file": bigContent(t, 1<<20)}))
	r := newTestRegistry(t)
	ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, layer))
	stalled := make(chan struct{}, 1)
	r.serveBlob(layer.descriptor().Digest, func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		select {
		case stalled <- struct{}{}:
			w.Header().Set("Content-Length", fmt.Sprint(len(layer.blob)))
			_, _ = w.Write(layer.blob[:len(layer.blob)/2])
			http.NewResponseController(w).Flush()
			<-req.Context().Done()
		default:
			http.ServeContent(w, req, "", created, bytes.NewReader(layer.blob))
		}
	})
	o := buildOptions(t, ref)
	o.Registry.StallTimeout = 100e6
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, stalled, 1)
}
