package imagesnapshotservice

import (
	"errors"
	"fmt"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

func matchRequestOf(m *imagesnapshotv1.MatchImagesRequest) (MatchRequest, error) {
	r := MatchRequest{Annotations: m.GetAnnotations(), Labels: m.GetLabels(), AutoMatch: m.GetAutoMatch(), Explain: int(m.GetExplain())}
	order, err := orderOf(m.GetOrder())
	problems := []error{err}
	r.Order = order
	for i, img := range m.GetImages() {
		out := matcher.Image{Reference: img.GetReference(), ManifestDigest: digest.Digest(img.GetManifestDigest())}
		if text := img.GetPlatform(); text != "" {
			p, err := platforms.Parse(text)
			if err != nil {
				problems = append(problems, &imagesnapshot.FieldError{Field: fmt.Sprintf("images[%d].platform", i), Detail: err.Error()})
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
	return r, errors.Join(problems...)
}

func matchMessage(a MatchAnswer) *imagesnapshotv1.MatchImagesResponse {
	outcomes := map[matcher.Outcome]imagesnapshotv1.MatchOutcome{
		matcher.OutcomePull:   imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_PULL,
		matcher.OutcomeUse:    imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_USE,
		matcher.OutcomeReject: imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_REJECT,
	}
	m := &imagesnapshotv1.MatchImagesResponse{
		Outcome: outcomes[a.Outcome], Reason: a.Reason, Warnings: a.Warnings, NothingMatched: a.NothingMatched,
		CreateIfMissing: a.Asked.CreateIfMissing, SavedDownloadBytes: a.Saved.DownloadBytes, SavedUnpackBytes: a.Saved.UnpackBytes,
		Considered: int32(a.Considered), Dialects: a.Asked.Dialects, Order: orderMessage(a.Asked.Rules.Order),
	}
	if a.Rejection != nil {
		m.RejectCode = string(a.Rejection.Code)
	}
	for _, c := range a.Chosen {
		m.Chosen = append(m.Chosen, &imagesnapshotv1.MatchChoice{Name: c.Name, Id: c.ID, Attached: c.Attached, Pinned: c.Pinned})
	}
	for i := range a.Candidates {
		m.Candidates = append(m.Candidates, candidateMessage(&a.Candidates[i]))
	}
	return m
}

func candidateMessage(c *matcher.Explanation) *imagesnapshotv1.MatchCandidate {
	m := &imagesnapshotv1.MatchCandidate{
		Name: c.Name, Id: c.ID, Attached: c.Attached, Pinned: c.Pinned, Verdict: Verdict(c.Verdict), Why: c.Why,
		SavedDownloadBytes: c.Saved.DownloadBytes, SavedUnpackBytes: c.Saved.UnpackBytes,
	}
	for _, k := range c.Score {
		m.Score = append(m.Score, &imagesnapshotv1.MatchKey{Name: string(k.Name), Value: k.Value})
	}
	for _, img := range c.Images {
		m.Images = append(m.Images, &imagesnapshotv1.MatchedImage{
			Reference: img.Reference, MatchedBy: imageMatchMessage(img.By), MovedTagDigest: img.MovedTag.String(),
			Layers: int32(img.Layers), Hits: int32(img.Hits), Run: int32(img.Run),
		})
	}
	return m
}

// orders in both languages.
func orders() map[imagesnapshotv1.MatchOrder]matcher.Order {
	return map[imagesnapshotv1.MatchOrder]matcher.Order{
		imagesnapshotv1.MatchOrder_MATCH_ORDER_SAVED:    matcher.OrderSaved,
		imagesnapshotv1.MatchOrder_MATCH_ORDER_SIZE:     matcher.OrderSize,
		imagesnapshotv1.MatchOrder_MATCH_ORDER_QUANTITY: matcher.OrderQuantity,
		imagesnapshotv1.MatchOrder_MATCH_ORDER_DEGREE:   matcher.OrderDegree,
	}
}

// orderOf is nil for a request that leaves the order to the annotations.
func orderOf(m imagesnapshotv1.MatchOrder) (*matcher.Order, error) {
	if m == imagesnapshotv1.MatchOrder_MATCH_ORDER_UNSPECIFIED {
		return nil, nil
	}
	order, ok := orders()[m]
	if !ok {
		return nil, &imagesnapshot.FieldError{Field: "order", Detail: fmt.Sprintf("%d is unknown here; allowed are 0 to %d", m, len(orders()))}
	}
	return &order, nil
}

func orderMessage(order matcher.Order) imagesnapshotv1.MatchOrder {
	for m, o := range orders() {
		if o == order {
			return m
		}
	}
	return imagesnapshotv1.MatchOrder_MATCH_ORDER_UNSPECIFIED
}

// Verdict is the matcher's on one image snapshot, as the APIs spell it.
func Verdict(v matcher.Verdict) imagesnapshotv1.MatchVerdict {
	switch v {
	case matcher.VerdictChosen:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_CHOSEN
	case matcher.VerdictLost:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_LOST
	case matcher.VerdictNotNeeded:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_NOT_NEEDED
	case matcher.VerdictNotWorthwhile:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_NOT_WORTHWHILE
	case matcher.VerdictGate:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_GATE_NOT_MET
	case matcher.VerdictNotReady:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_NOT_READY
	case matcher.VerdictExpired:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_EXPIRED
	case matcher.VerdictPlatform:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_OTHER_PLATFORM
	case matcher.VerdictUnreachable:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_UNREACHABLE
	case matcher.VerdictNoMatch:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_NO_MATCH
	case matcher.VerdictSetAside:
		return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_SET_ASIDE
	}
	return imagesnapshotv1.MatchVerdict_MATCH_VERDICT_UNSPECIFIED
}

func imageMatchMessage(by matcher.MatchedBy) imagesnapshotv1.ImageMatch {
	switch by {
	case matcher.MatchedByDigest:
		return imagesnapshotv1.ImageMatch_IMAGE_MATCH_DIGEST
	case matcher.MatchedByName:
		return imagesnapshotv1.ImageMatch_IMAGE_MATCH_NAME
	case matcher.MatchedByLayers:
		return imagesnapshotv1.ImageMatch_IMAGE_MATCH_LAYERS
	case matcher.MatchedByNone:
	}
	return imagesnapshotv1.ImageMatch_IMAGE_MATCH_UNSPECIFIED
}
