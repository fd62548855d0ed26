package imagesnapshotservice_test

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/proto/enumword"
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
	ask := func(change func(*imagesnapshotv1.MatchImagesRequest)) (*imagesnapshotv1.MatchImagesResponse, error) {
		req := &imagesnapshotv1.MatchImagesRequest{AutoMatch: true, Images: []*imagesnapshotv1.MatchImage{{Reference: "nginx:1.27", Platform: "linux/arm64",
			ManifestDigest: digest.FromString("m").String(), Layers: []*imagesnapshotv1.MatchLayer{{DiffId: layer.DiffID.String(), BlobBytes: layer.CompressedBytes}}}}}
		change(req)
		return w.MatchImages(ctx, req)
	}
	got, err := ask(func(*imagesnapshotv1.MatchImagesRequest) {})
	require.NoError(t, err)
	require.Equal(t, imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_USE, got.GetOutcome())
	require.Equal(t, "id-1", got.GetChosen()[0].GetId())
	require.EqualValues(t, 1<<30, got.GetSavedDownloadBytes())
	require.Equal(t, imagesnapshotv1.MatchOrder_MATCH_ORDER_SAVED, got.GetOrder())
	require.Equal(t, imagesnapshotv1.MatchVerdict_MATCH_VERDICT_CHOSEN, got.GetCandidates()[0].GetVerdict())
	require.Equal(t, imagesnapshotv1.ImageMatch_IMAGE_MATCH_DIGEST, got.GetCandidates()[0].GetImages()[0].GetMatchedBy())
	require.EqualValues(t, 1, got.GetCandidates()[0].GetImages()[0].GetRun())
	require.Equal(t, imagesnapshotv1.MatchVerdict_MATCH_VERDICT_NOT_READY, got.GetCandidates()[1].GetVerdict()) // C-3
	require.NotEmpty(t, got.GetCandidates()[0].GetScore())

	// Off is the default without a dialect that says otherwise (C-7).
	got, err = ask(func(r *imagesnapshotv1.MatchImagesRequest) { r.AutoMatch = false })
	require.NoError(t, err)
	require.Equal(t, imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_PULL, got.GetOutcome())
	got, err = ask(func(r *imagesnapshotv1.MatchImagesRequest) {
		r.Annotations = map[string]string{"cci.io/image-snapshot-auto-match": "true"}
	})
	require.NoError(t, err)
	require.Equal(t, imagesnapshotv1.MatchOrder_MATCH_ORDER_SIZE, got.GetOrder())
	require.Equal(t, []string{"cci"}, got.GetDialects())
	got, err = ask(func(r *imagesnapshotv1.MatchImagesRequest) { r.Order = imagesnapshotv1.MatchOrder_MATCH_ORDER_QUANTITY })
	require.NoError(t, err)
	require.Equal(t, imagesnapshotv1.MatchOrder_MATCH_ORDER_QUANTITY, got.GetOrder())
	got, err = ask(func(r *imagesnapshotv1.MatchImagesRequest) {
		r.Annotations = map[string]string{"berth.dev/snapshot": "none", "berth.dev/reject-if-unavailable": "true"}
	})
	require.NoError(t, err)
	require.Equal(t, imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_REJECT, got.GetOutcome())
	require.Equal(t, "SnapshotNotFound", got.GetRejectCode())

	for field, change := range map[string]func(*imagesnapshotv1.MatchImagesRequest){
		"order":              func(r *imagesnapshotv1.MatchImagesRequest) { r.Order = 99 },
		"images[0].platform": func(r *imagesnapshotv1.MatchImagesRequest) { r.Images[0].Platform = "a/b/c/d" },
		"annotations[berth.dev/auto-match]": func(r *imagesnapshotv1.MatchImagesRequest) {
			r.Annotations = map[string]string{"berth.dev/auto-match": "yes"} // C-14
		},
	} {
		_, err := ask(change)
		require.Contains(t, violations(t, err), field)
	}
	for _, change := range []func(*imagesnapshotv1.MatchImagesRequest){
		func(r *imagesnapshotv1.MatchImagesRequest) { r.Images = nil },
		func(r *imagesnapshotv1.MatchImagesRequest) { r.Images[0].Reference = "UPPER" },
		func(r *imagesnapshotv1.MatchImagesRequest) { r.Images[0].ManifestDigest = "sha256:1" },
		func(r *imagesnapshotv1.MatchImagesRequest) { r.Images[0].Layers[0].BlobBytes = -1 },
	} {
		_, err := ask(change)
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%v", err)
	}
}

// Every word of the matcher has a value of its own in the API, spelled alike for people.
func TestMatchWords(t *testing.T) {
	for _, v := range []matcher.Verdict{
		matcher.VerdictChosen, matcher.VerdictLost, matcher.VerdictNotNeeded, matcher.VerdictNotWorthwhile, matcher.VerdictGate,
		matcher.VerdictNotReady, matcher.VerdictExpired, matcher.VerdictPlatform, matcher.VerdictUnreachable, matcher.VerdictNoMatch,
		matcher.VerdictSetAside,
	} {
		require.Equal(t, string(v), enumword.Of(imagesnapshotservice.Verdict(v)))
	}
	require.Zero(t, imagesnapshotservice.Verdict("new"))
	for value := range imagesnapshotv1.MatchOrder_name {
		if word := enumword.Of(imagesnapshotv1.MatchOrder(value)); word != "" {
			_, err := matcher.ParseOrder(word)
			require.NoError(t, err)
		}
	}
}
