package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

type annotations = map[string]string

// publish makes a disk with the image app:1.0 an image snapshot of a catalog, and gives the settings of a node that
// follows it.
func (p *process) publish(name string) string {
	p.t.Helper()
	file := p.path(name + ".img")
	makeDisk(p.t, file)
	f, err := os.Open(file)
	require.NoError(p.t, err)
	index, err := catalog.ReadIndex(f)
	require.NoError(p.t, err)
	require.NoError(p.t, f.Close())
	require.NoError(p.t, os.MkdirAll(p.path("catalog"), 0o700))
	dir, err := directory.Open(p.path("catalog"), 0)
	require.NoError(p.t, err)
	require.NoError(p.t, dir.Publish(p.t.Context(), catalog.Entry{
		Name: name, ID: name + "-id", State: catalog.StateAvailable, Created: time.Now(),
		Source: catalog.Source{Driver: "loop", VolumeID: file}, Index: index,
	}))
	return fmt.Sprintf("[catalog]\ndirectory = %q\n", p.path("catalog"))
}

// match asks what a pod with these annotations would be given for the images.
func (p *process) match(a annotations, labels map[string]string, images ...string) (*imagesnapshotv1.MatchImagesResponse, error) {
	req := &imagesnapshotv1.MatchImagesRequest{Annotations: a, Labels: labels}
	for _, ref := range images {
		req.Images = append(req.Images, &imagesnapshotv1.MatchImage{Reference: ref})
	}
	return imagesnapshotv1.NewImageSnapshotServiceClient(p.dial()).MatchImages(p.t.Context(), req)
}

// outcome is what match gives in words: the outcome, or the message of the error.
func (p *process) outcome(a annotations, labels map[string]string, images ...string) string {
	p.t.Helper()
	resp, err := p.match(a, labels, images...)
	if err != nil {
		require.Equal(p.t, codes.InvalidArgument, status.Code(err))
		return status.Convert(err).Message()
	}
	word := strings.ToLower(strings.TrimPrefix(resp.GetOutcome().String(), "MATCH_OUTCOME_"))
	if word == "use" {
		word += " " + resp.GetChosen()[0].GetName() + " by " + strings.ToLower(strings.TrimPrefix(resp.GetOrder().String(), "MATCH_ORDER_"))
	}
	return word
}

// exampleOfTheManual is the section that docs/matching.md gives for a vendor that is not built in.
func exampleOfTheManual(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/matching.md")
	require.NoError(t, err)
	_, text, ok := strings.Cut(string(page), "```toml\n")
	require.True(t, ok)
	text, _, ok = strings.Cut(text, "```")
	require.True(t, ok)
	return text
}

// TestConfiguredDialect: a node reads the annotations of the vendor in docs/matching.md as the page says, from the next
// start on. Fails when the service is given the built-in dialects, or when a reload does not see that they changed.
func TestConfiguredDialect(t *testing.T) {
	t.Parallel()
	const vendor = "cache.example.com/"
	p := newProcess(t, "")
	catalog := p.publish("web")
	p.configure(catalog)
	p.start()
	auto := annotations{"berth.dev/auto-match": "true"}
	p.eventually("the catalog", func() bool { return p.outcome(auto, nil, "app:1.0") == "use web by saved" })
	require.Equal(t, "pull", p.outcome(annotations{vendor + "use-cache": "web-id"}, nil, "app:1.0"), "not known yet")

	p.configure(catalog + exampleOfTheManual(t))
	require.NoError(t, p.cmd.Process.Signal(unix.SIGHUP))
	p.eventually("the reload", func() bool { return strings.Contains(p.log.String(), "restart_needed=true") })
	require.Equal(t, "pull", p.outcome(annotations{vendor + "use-cache": "web-id"}, nil, "app:1.0"), "not before a restart")
	p.stop()
	p.start()
	p.eventually("the catalog", func() bool { return p.outcome(auto, nil, "app:1.0") == "use web by saved" })

	for _, tc := range []struct {
		name   string
		a      annotations
		labels map[string]string
		images []string
		want   string
	}{
		{"nothing said", nil, nil, nil, "pull"},
		{"opted in by label", nil, map[string]string{"example.com/serverless": "true"}, nil, "use web by degree"},
		{"opted in by an annotation", annotations{vendor + "policy": "images"}, nil, nil, "use web by quantity"},
		{"a word of its own", annotations{vendor + "use-cache": "yes", vendor + "policy": "bytes"}, nil, nil, "use web by size"},
		{"another one", annotations{vendor + "use-cache": "no"}, map[string]string{"example.com/serverless": "true"}, nil, "pull"},
		{"an ID", annotations{vendor + "use-cache": "web-id"}, nil, []string{"other:1"}, "use web by saved"},
		{"an ID that does not exist", annotations{vendor + "use-cache": "gone"}, nil, nil, "pull"},
		{"a value that it does not have", annotations{vendor + "policy": "size"}, nil, nil,
			`match images: annotation cache.example.com/policy: "size": want one of bytes, images`},
		{"the built-in ones are there too", annotations{"cci.io/image-snapshot-auto-match": "true"}, nil, nil, "use web by size"},
	} {
		if tc.images == nil {
			tc.images = []string{"app:1.0"}
		}
		require.Equal(t, tc.want, p.outcome(tc.a, tc.labels, tc.images...), tc.name)
	}
	resp, err := p.match(annotations{vendor + "use-cache": "yes"}, nil, "app:1.0")
	require.NoError(t, err)
	require.Equal(t, []string{"example"}, resp.GetDialects())
	p.stop()
}

// TestMatchingSettings: Q1 and Q4 as a node is told. Fails when one of the settings does not reach the service.
func TestMatchingSettings(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	catalog := p.publish("web")
	both := annotations{"cci.io/image-snapshot-auto-match": "true", "cci.io/image-snapshot-specified-name": "web"}
	for _, tc := range []struct {
		settings               string
		unasked, both, refused string
	}{
		{"", "pull", "use web by size", "pull"},
		{"auto_match = true", "use web by saved", "use web by size", "pull"},
		{"opt_in = \"eci\"", "use web by degree", "use web by size", "pull"},
		{"strict_conflict = true", "pull", "reject", "pull"},
	} {
		p.configure(catalog + "[matching]\n" + tc.settings + "\n")
		p.start()
		p.eventually("the catalog", func() bool {
			return p.outcome(annotations{"berth.dev/auto-match": "true"}, nil, "app:1.0") != "pull"
		})
		require.Equal(t, tc.unasked, p.outcome(nil, nil, "app:1.0"), tc.settings)
		require.Equal(t, tc.both, p.outcome(both, nil, "app:1.0"), tc.settings)
		require.Equal(t, tc.refused, p.outcome(annotations{"berth.dev/auto-match": "false"}, nil, "app:1.0"), tc.settings)
		p.stop()
	}
}

// TestExactMatch is E-6 in CCI's words: all images of the pod must match, and the answer says of each image snapshot
// why it does not do. Fails when the annotation is not read, or the matcher's gate is open.
func TestExactMatch(t *testing.T) {
	t.Parallel()
	const cci = "cci.io/image-snapshot-"
	p := newProcess(t, "")
	p.configure(p.publish("web"))
	p.start()
	exact := annotations{cci + "auto-match": "true", cci + "exact-match": "true"}
	p.eventually("the catalog", func() bool { return p.outcome(exact, nil, "app:1.0") == "use web by size" })
	auto, off := annotations{cci + "auto-match": "true"}, annotations{cci + "auto-match": "true", cci + "exact-match": "false"}
	require.Equal(t, "use web by size", p.outcome(auto, nil, "app:1.0", "other:1"), "off by default")
	require.Equal(t, "use web by size", p.outcome(off, nil, "app:1.0", "other:1"))
	require.Contains(t, p.outcome(annotations{cci + "exact-match": "yes"}, nil, "app:1.0"),
		`annotation cci.io/image-snapshot-exact-match: "yes": want "true" or "false"`)

	resp, err := p.match(exact, nil, "app:1.0", "other:1")
	require.NoError(t, err)
	require.Equal(t, imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_PULL, resp.GetOutcome())
	require.Len(t, resp.GetCandidates(), 1)
	require.Equal(t, imagesnapshotv1.MatchVerdict_MATCH_VERDICT_GATE_NOT_MET, resp.GetCandidates()[0].GetVerdict())
	require.Equal(t, "it matches 1 of 2 images exactly and a perfect match is asked for", resp.GetCandidates()[0].GetWhy())
	p.stop()
}
