package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/builder"
	"berth.dev/berth/layerdisk"
)

// pushImage stores a random image in a registry of this process.
func pushImage(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	img, err := random.Image(10000, 3)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config.OS, config.Architecture = "linux", "amd64"
	config.Created = v1.Time{Time: time.Unix(1700000000, 0)}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/team/app:1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img))
	return ref.String()
}

func runBerth(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := newRoot()
	var out, errOut bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

func TestBuildCommand(t *testing.T) {
	ref := pushImage(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	stdout, stderr, err := runBerth(t, "build", "--platform", "linux/amd64", "-o", disk, ref)
	require.NoError(t, err)
	require.Contains(t, stderr, "image "+ref+" for linux/amd64")
	require.Contains(t, stderr, "(3 of 3)")
	f, err := os.Open(disk)
	require.NoError(t, err)
	defer f.Close()
	ix, id, err := layerdisk.ReadIndex(f)
	require.NoError(t, err)
	require.Contains(t, stdout, id.UUID)
	require.Contains(t, stdout, id.IndexDigest.String())
	require.Equal(t, int64(1700000000), ix.Created.Unix())

	_, _, err = runBerth(t, "build", "--platform", "linux/amd64", "-o", disk, ref)
	require.ErrorContains(t, err, "--force")

	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	stdout, _, err = runBerth(t, "build", "--platform", "linux/amd64", "--force", "--json", "--size", "20MiB", "-o", disk, ref)
	require.NoError(t, err)
	kinds := make(map[string]int)
	var result builder.Result
	for line := range strings.Lines(stdout) {
		var event struct {
			Event  string          `json:"event"`
			Result *builder.Result `json:"result"`
		}
		require.NoError(t, json.Unmarshal([]byte(line), &event))
		kinds[event.Event]++
		if event.Result != nil {
			result = *event.Result
		}
	}
	delete(kinds, "layer-progress") // depends on the time it takes
	require.Equal(t, map[string]int{"image-resolved": 1, "planned": 1, "layer-started": 3, "layer-done": 3, "finishing": 1, "result": 1}, kinds)
	again, err := os.Open(disk)
	require.NoError(t, err)
	defer again.Close()
	ix, id, err = layerdisk.ReadIndex(again)
	require.NoError(t, err)
	require.Equal(t, id, result.Identity)
	require.Equal(t, int64(86400), ix.Created.Unix())
	info, err := again.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(20<<20), info.Size())

	for _, args := range [][]string{{"inspect", "--json", disk}, {"build", "--platform", "linux/amd64", "--plan", "--json", ref}} {
		more, _, err := runBerth(t, args...)
		require.NoError(t, err)
		stdout += more
	}
	for dec := json.NewDecoder(strings.NewReader(stdout)); dec.More(); {
		var object map[string]any
		require.NoError(t, dec.Decode(&object))
		requireNames(t, object)
	}
}

// requireNames wants the names in JSON to be as those of the API.
func requireNames(t *testing.T, tree any) {
	t.Helper()
	switch v := tree.(type) {
	case map[string]any:
		for name, value := range v {
			require.Regexp(t, "^[a-z0-9_]+$", name)
			requireNames(t, value)
		}
	case []any:
		for _, value := range v {
			requireNames(t, value)
		}
	}
}

func TestBuildCommandRefuses(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk.img")
	for want, args := range map[string][]string{
		"is required":         {"alpine"},
		"requires at least 1": {"-o", disk},
		"--size":              {"-o", disk, "--size", "many", "alpine"},
		"less than one block": {"-o", disk, "--size", "1k", "alpine"},
		"--max-layer-size":    {"-o", disk, "--max-layer-size", "x", "alpine"},
		"--max-layer-files":   {"-o", disk, "--max-layer-files", "0", "alpine"},
		"--platform":          {"-o", disk, "--platform", "a/b/c/d/e", "alpine"},
		"--created":           {"-o", disk, "--created", "yesterday", "alpine"},
		"neither erofs nor":   {"-o", disk, "--fs", "xfs", "alpine"},
		"in parallel":         {"-o", disk, "--parallel", "1000", "alpine"},
		"no such file":        {"-o", disk, "oci:/nonexistent"},
		"image reference":     {"-o", disk, "in valid"},
	} {
		_, _, err := runBerth(t, append([]string{"build"}, args...)...)
		require.ErrorContains(t, err, want)
		require.NoFileExists(t, disk)
	}
	stdout, _, err := runBerth(t, "build", "--json", "-o", disk, "oci:/nonexistent")
	require.Error(t, err)
	require.Contains(t, stdout, `"event":"error"`)
}

// TestBarView: the bars end whatever the build does.
func TestBarView(t *testing.T) {
	for _, err := range []error{nil, os.ErrInvalid} {
		var out bytes.Buffer
		v := newBarView(&out)
		v.event(builder.Event{Kind: builder.EventResolved, Image: &builder.ImageEvent{Reference: "docker.io/library/a:1", Platform: "linux/amd64", Layers: 2}})
		v.event(builder.Event{Kind: builder.EventPlanned, Plan: &builder.PlanEvent{Images: 1, Layers: 2, BlobBytes: 100}})
		layer := builder.LayerEvent{Number: 0, Blob: "sha256:0123456789abcdef", BlobBytes: 100}
		v.event(builder.Event{Kind: builder.EventLayerStarted, Layer: &layer})
		layer.FetchedBytes = 100
		v.event(builder.Event{Kind: builder.EventLayerProgress, Layer: &layer})
		if err == nil {
			v.event(builder.Event{Kind: builder.EventLayerDone, Layer: &layer})
		}
		require.NoError(t, v.end(nil, err))
		require.Contains(t, out.String(), "docker.io/library/a:1")
		require.NotRegexp(t, `[0-9] ?b\b`, out.String(), "bytes, not bits")
	}
}
