package imagesnapshotservice

import (
	"fmt"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

func matchRequestOf(m *controlv1.MatchImagesRequest) (MatchRequest, error) {
	r := MatchRequest{Annotations: m.GetAnnotations(), Labels: m.GetLabels(), AutoMatch: m.GetAutoMatch(), Explain: int(m.GetExplain())}
	if text := m.GetOrder(); text != "" {
		order, err := matcher.ParseOrder(text)
		if err != nil {
			return r, &imagesnapshot.FieldError{Field: "order", Detail: err.Error()}
		}
		r.Order = &order
	}
	for i, img := range m.GetImages() {
		out := matcher.Image{Reference: img.GetReference(), ManifestDigest: digest.Digest(img.GetManifestDigest())}
		if text := img.GetPlatform(); text != "" {
			p, err := platforms.Parse(text)
			if err != nil {
				return r, &imagesnapshot.FieldError{Field: fmt.Sprintf("images[%d].platform", i), Detail: err.Error()}
			}
			p = platforms.Normalize(p)
			out.Platform = matcher.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
		}
		for _, l := range img.GetLayers() {
			out.Layers = append(out.Layers, matcher.Layer{
				LayerName:       layerdisk.LayerName{DiffID: digest.Digest(l.GetDiffId()), Blob: digest.Digest(l.GetBlobDigest())},
				CompressedBytes: l.GetBlobBytes(),
				Present:         l.GetPresent(),
			})
		}
		r.Images = append(r.Images, out)
	}
	return r, nil
}

func matchMessage(a MatchAnswer) *controlv1.MatchImagesResponse {
	outcomes := map[matcher.Outcome]controlv1.MatchOutcome{
		matcher.OutcomePull:   controlv1.MatchOutcome_MATCH_OUTCOME_PULL,
		matcher.OutcomeUse:    controlv1.MatchOutcome_MATCH_OUTCOME_USE,
		matcher.OutcomeReject: controlv1.MatchOutcome_MATCH_OUTCOME_REJECT,
	}
	m := &controlv1.MatchImagesResponse{
		Outcome: outcomes[a.Outcome], Reason: a.Reason, Warnings: a.Warnings, NothingMatched: a.NothingMatched,
		CreateIfMissing: a.Asked.CreateIfMissing, SavedDownloadBytes: a.Saved.DownloadBytes, SavedUnpackBytes: a.Saved.UnpackBytes,
		Considered: int32(a.Considered), Dialects: a.Asked.Dialects, Order: a.Asked.Rules.Order.String(),
	}
	if a.Rejection != nil {
		m.RejectCode = string(a.Rejection.Code)
	}
	for _, c := range a.Chosen {
		m.Chosen = append(m.Chosen, &controlv1.MatchChoice{Name: c.Name, Id: c.ID, Attached: c.Attached, Pinned: c.Pinned})
	}
	for i := range a.Candidates {
		m.Candidates = append(m.Candidates, candidateMessage(&a.Candidates[i]))
	}
	return m
}

func candidateMessage(c *matcher.Explanation) *controlv1.MatchCandidate {
	m := &controlv1.MatchCandidate{
		Name: c.Name, Id: c.ID, Attached: c.Attached, Pinned: c.Pinned, Verdict: string(c.Verdict), Why: c.Why,
		SavedDownloadBytes: c.Saved.DownloadBytes, SavedUnpackBytes: c.Saved.UnpackBytes,
	}
	for _, k := range c.Score {
		m.Score = append(m.Score, &controlv1.MatchKey{Name: string(k.Name), Value: k.Value})
	}
	for _, img := range c.Images {
		m.Images = append(m.Images, &controlv1.MatchedImage{
			Reference: img.Reference, MatchedBy: string(img.By), MovedTagDigest: img.MovedTag.String(),
			Layers: int32(img.Layers), Hits: int32(img.Hits), Run: int32(img.Run),
		})
	}
	return m
}
