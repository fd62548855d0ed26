package imagesnapshotservice_test

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

func TestMatchImages(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	layer := matcher.Layer{LayerName: layerdisk.LayerName{DiffID: digest.FromString("d0")}, CompressedBytes: 1 << 30}
	require.NoError(t, w.fleet.Put(matcher.Candidate{Name: "nightly", ID: "id-1", State: matcher.StateAvailable,
		Images: []matcher.CandidateImage{{Reference: "docker.io/library/nginx:1.27", Platform: matcher.Platform{OS: "linux", Architecture: "arm64"}, ManifestDigest: digest.FromString("m")}},
		Layers: []matcher.Layer{{LayerName: layerdisk.LayerName{DiffID: layer.DiffID, ChainID: layer.DiffID}, CompressedBytes: layer.CompressedBytes}}}))
	require.NoError(t, w.fleet.Put(matcher.Candidate{Name: "building", ID: "id-2", State: "Creating",
		Images: []matcher.CandidateImage{{Reference: "docker.io/library/nginx:1.27", Platform: matcher.Platform{OS: "linux", Architecture: "arm64"}}}}))
	ask := func(change func(*controlv1.MatchImagesRequest)) (*controlv1.MatchImagesResponse, error) {
		req := &controlv1.MatchImagesRequest{AutoMatch: true, Images: []*controlv1.MatchImage{{Reference: "nginx:1.27", Platform: "linux/arm64",
			ManifestDigest: digest.FromString("m").String(), Layers: []*controlv1.MatchLayer{{DiffId: layer.DiffID.String(), BlobBytes: layer.CompressedBytes}}}}}
		change(req)
		return w.MatchImages(ctx, req)
	}
	got, err := ask(func(*controlv1.MatchImagesRequest) {})
	require.NoError(t, err)
	require.Equal(t, controlv1.MatchOutcome_MATCH_OUTCOME_USE, got.GetOutcome())
	require.Equal(t, "id-1", got.GetChosen()[0].GetId())
	require.EqualValues(t, 1<<30, got.GetSavedDownloadBytes())
	require.Equal(t, "saved", got.GetOrder())
	require.Equal(t, "chosen", got.GetCandidates()[0].GetVerdict())
	require.Equal(t, "digest", got.GetCandidates()[0].GetImages()[0].GetMatchedBy())
	require.EqualValues(t, 1, got.GetCandidates()[0].GetImages()[0].GetRun())
	require.Equal(t, "not-ready", got.GetCandidates()[1].GetVerdict()) // C-3
	require.NotEmpty(t, got.GetCandidates()[0].GetScore())

	// Off is the default without a dialect that says otherwise (C-7).
	got, err = ask(func(r *controlv1.MatchImagesRequest) { r.AutoMatch = false })
	require.NoError(t, err)
	require.Equal(t, controlv1.MatchOutcome_MATCH_OUTCOME_PULL, got.GetOutcome())
	got, err = ask(func(r *controlv1.MatchImagesRequest) {
		r.Annotations = map[string]string{"cci.io/image-snapshot-auto-match": "true"}
	})
	require.NoError(t, err)
	require.Equal(t, "size", got.GetOrder())
	require.Equal(t, []string{"cci"}, got.GetDialects())
	got, err = ask(func(r *controlv1.MatchImagesRequest) { r.Order = "quantity" })
	require.NoError(t, err)
	require.Equal(t, "quantity", got.GetOrder())
	got, err = ask(func(r *controlv1.MatchImagesRequest) {
		r.Annotations = map[string]string{"berth.dev/snapshot": "none", "berth.dev/reject-if-unavailable": "true"}
	})
	require.NoError(t, err)
	require.Equal(t, controlv1.MatchOutcome_MATCH_OUTCOME_REJECT, got.GetOutcome())
	require.Equal(t, "SnapshotNotFound", got.GetRejectCode())

	for field, change := range map[string]func(*controlv1.MatchImagesRequest){
		"order":              func(r *controlv1.MatchImagesRequest) { r.Order = "best" },
		"images[0].platform": func(r *controlv1.MatchImagesRequest) { r.Images[0].Platform = "a/b/c/d" },
		"annotations[berth.dev/auto-match]": func(r *controlv1.MatchImagesRequest) {
			r.Annotations = map[string]string{"berth.dev/auto-match": "yes"} // C-14
		},
	} {
		_, err := ask(change)
		require.Contains(t, violations(t, err), field)
	}
	for _, change := range []func(*controlv1.MatchImagesRequest){
		func(r *controlv1.MatchImagesRequest) { r.Images = nil },
		func(r *controlv1.MatchImagesRequest) { r.Images[0].Reference = "UPPER" },
		func(r *controlv1.MatchImagesRequest) { r.Images[0].ManifestDigest = "sha256:1" },
		func(r *controlv1.MatchImagesRequest) { r.Images[0].Layers[0].BlobBytes = -1 },
	} {
		_, err := ask(change)
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%v", err)
	}
}
