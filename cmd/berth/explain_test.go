package main

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

func explainArgs(t *testing.T, socket, image string, more ...string) []string {
	t.Helper()
	return append([]string{"explain", image, "--socket", socket, "--containerd-address", filepath.Join(t.TempDir(), "none")}, more...)
}

func TestExplainFromDisk(t *testing.T) {
	diffs := []digest.Digest{digest.FromString("0"), digest.FromString("1"), digest.FromString("2")}
	manifest, err := json.Marshal(ocispec.Manifest{Layers: []ocispec.Descriptor{
		{Digest: digest.FromString("b0"), Size: 29 << 20}, {Digest: digest.FromString("b1"), Size: 1 << 20}, {Digest: digest.FromString("b2"), Size: 4000},
	}})
	require.NoError(t, err)
	config, err := json.Marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffs}})
	require.NoError(t, err)
	f := &fakeDaemon{image: &controlv1.FindImageResponse{Disk: "base", Manifest: manifest, Config: config},
		hits: map[string]bool{diffs[0].String(): true, diffs[1].String(): true}}
	socket := start(t, f)

	out, err := berth(t, explainArgs(t, socket, "app:1")...)
	require.NoError(t, err)
	head, tail, ok := strings.Cut(out, "containerd could not be asked: ")
	require.True(t, ok, out)
	require.Contains(t, tail, "no such file")
	golden(t, "explain", head)

	out, err = berth(t, explainArgs(t, socket, "app:1", "--json")...)
	require.NoError(t, err)
	var e explanation
	require.NoError(t, json.Unmarshal([]byte(out), &e))
	require.Equal(t, "disk base", e.Source)
	require.Len(t, e.Layers, 3)
	require.Equal(t, identity.ChainID(diffs).String(), e.Layers[2].ChainID)
	require.Nil(t, e.Layers[0].InContainerd)
	require.True(t, e.Layers[1].Hit)
	require.False(t, e.Layers[2].Hit)

	// A config that does not fit its manifest is refused.
	f.image.Config = []byte(`{"rootfs":{"diff_ids":[]}}`)
	_, err = berth(t, explainArgs(t, socket, "app:1")...)
	require.ErrorContains(t, err, "its config names 0 layers, its manifest 3")
	f.image.Config = []byte(`{"rootfs":{"diff_ids":["x","y","z"]}}`)
	_, err = berth(t, explainArgs(t, socket, "app:1")...)
	require.ErrorContains(t, err, "layer 0: invalid checksum digest format")
}

func TestExplainFromRegistry(t *testing.T) {
	server := httptest.NewServer(registry.New())
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host+"/app:1", name.Insecure)
	require.NoError(t, err)
	img, err := random.Image(1000, 3)
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img))
	layers, err := img.Layers()
	require.NoError(t, err)
	lowest, err := layers[0].DiffID()
	require.NoError(t, err)

	socket := start(t, &fakeDaemon{hits: map[string]bool{lowest.String(): true}})
	out, err := berth(t, explainArgs(t, socket, host+"/app:1", "--plain-http", host, "--json")...)
	require.NoError(t, err)
	var e explanation
	require.NoError(t, json.Unmarshal([]byte(out), &e))
	require.Equal(t, "registry "+host, e.Source)
	require.Equal(t, []bool{true, false, false}, []bool{e.Layers[0].Hit, e.Layers[1].Hit, e.Layers[2].Hit})
	require.Equal(t, digestOf(t, layers[1]), e.Layers[1].BlobDigest)

	// Nowhere: every place that was looked at is named.
	_, err = berth(t, explainArgs(t, socket, host+"/none:1", "--plain-http", "*")...)
	require.ErrorContains(t, err, "on the attached disks")
	require.ErrorContains(t, err, "in containerd")
	require.ErrorContains(t, err, "at the registry")

	_, err = berth(t, explainArgs(t, socket, "App:1")...)
	require.ErrorContains(t, err, `image "App:1"`)
	_, err = berth(t, explainArgs(t, socket, "app:1", "--platform", "a/b/c/d")...)
	require.ErrorContains(t, err, "--platform")
}

func digestOf(t *testing.T, l ggcr.Layer) string {
	t.Helper()
	d, err := l.Digest()
	require.NoError(t, err)
	return d.String()
}

func TestConfigContainerd(t *testing.T) {
	out, err := berth(t, "config", "containerd", "--version", "2.1")
	require.NoError(t, err)
	require.Contains(t, out, "version = 3")
	require.Contains(t, out, "[proxy_plugins.berth]")
	out, err = berth(t, "config", "containerd", "--version", "1.7", "--no-cri", "--snapshotter", "disks", "--root", "/b", "--socket", "/b.sock")
	require.NoError(t, err)
	require.Contains(t, out, "[proxy_plugins.disks]")
	require.Contains(t, out, `address = "/b.sock"`)
	require.NotContains(t, out, "grpc.v1.cri")
	_, err = berth(t, "config", "containerd", "--version", "1.6")
	require.ErrorContains(t, err, "too old")
	none := filepath.Join(t.TempDir(), "none")
	_, err = berth(t, "config", "containerd", "--containerd", none, "--containerd-address", none)
	require.ErrorContains(t, err, "give --version")
}

func TestDoctor(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	args := []string{"doctor", "--socket", none, "--containerd", none, "--containerd-address", none, "--containerd-config", none, "--root", none}
	out, err := berth(t, args...)
	require.ErrorContains(t, err, "see FAIL above")
	require.Contains(t, out, "FAIL  berthd: not running: there is no socket "+none+"\n      -> start it: systemctl start berthd\n")

	out, err = berth(t, append(args, "--json")...)
	require.Error(t, err)
	var results []struct{ Name, Status, Detail, Advice string }
	require.NoError(t, json.Unmarshal([]byte(out), &results))
	require.Equal(t, "kernel", results[0].Name)
	require.Equal(t, "OK", results[0].Status)
}

// FuzzParseImage: manifests and configs come from strangers.
func FuzzParseImage(f *testing.F) {
	d := digest.FromString("x").String()
	f.Add([]byte(`{"layers":[{"digest":"`+d+`","size":1}]}`), []byte(`{"rootfs":{"diff_ids":["`+d+`"]}}`))
	f.Add([]byte(`{"layers":[{"digest":"x"}]}`), []byte(`{"rootfs":{"diff_ids":["sha256:"]}}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		l, err := parseImage("fuzz", manifest, config)
		if err != nil {
			return
		}
		for i := range l.DiffIDs {
			require.NoError(t, l.chainID(i).Validate())
			require.NotEmpty(t, shortDigest(l.DiffIDs[i]))
		}
	})
}

// TestExplainByMirror: the registry is asked as a build asks it, by way of hosts.toml.
func TestExplainByMirror(t *testing.T) {
	ref := pushImage(t)
	server, _, _ := strings.Cut(ref, "/")
	hosts := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(hosts, "registry.berth.invalid"), 0o755))
	configure := func(scheme string) {
		text := fmt.Sprintf("server = %q\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", scheme+"://"+server)
		require.NoError(t, os.WriteFile(filepath.Join(hosts, "registry.berth.invalid", "hosts.toml"), []byte(text), 0o600))
	}
	ask := func() (string, error) {
		return berth(t, "explain", "--platform", "linux/amd64", "--hosts-dir", hosts, "--containerd-address", filepath.Join(hosts, "none"),
			"--socket", start(t, &fakeDaemon{}), "registry.berth.invalid/team/app:1")
	}
	configure("http")
	out, err := ask()
	require.NoError(t, err)
	require.Contains(t, out, "registry.berth.invalid/team/app:1, manifest from registry registry.berth.invalid\n")
	require.Contains(t, out, "0 of 3 layers on disks")

	configure("https")
	_, err = ask()
	require.ErrorContains(t, err, "--plain-http HOST speaks HTTP")
}
