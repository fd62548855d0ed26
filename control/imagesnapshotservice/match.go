package imagesnapshotservice

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"

	"berth.dev/berth/matcher"
	"berth.dev/berth/matcher/dialect"
)

// MatchRequest asks what would be chosen for a set of images.
type MatchRequest struct {
	// Images with references that need not be normalised. The zero platform is this node's.
	Images []matcher.Image
	// Annotations and Labels of the pod.
	Annotations, Labels map[string]string
	// AutoMatch asks for automatic matching where the annotations say nothing about it.
	AutoMatch bool
	// Order, if not nil, overrides that of the annotations.
	Order *matcher.Order
	// Explain is matcher.Request's.
	Explain int
}

// MatchAnswer says what would be chosen, and what the annotations were taken to mean.
type MatchAnswer struct {
	matcher.Decision
	Asked dialect.Request
}

// Match reports what would be chosen, and changes nothing. Errors are of the class errdefs.ErrInvalidArgument; those
// about annotations have a dialect.Error for each.
func (s *Service) Match(_ context.Context, req MatchRequest) (MatchAnswer, error) {
	asked, warnings, err := s.dialects.Parse(dialect.Input{Annotations: req.Annotations, Labels: req.Labels, AutoMatch: req.AutoMatch})
	if err != nil {
		return MatchAnswer{}, fmt.Errorf("match images: %w", err)
	}
	if req.Order != nil {
		asked.Rules.Order = *req.Order
	}
	images := make([]matcher.Image, len(req.Images))
	for i, img := range req.Images {
		if img.Reference != "" {
			named, err := reference.ParseDockerRef(img.Reference)
			if err != nil {
				return MatchAnswer{}, fmt.Errorf("match images: images[%d].reference: %.160q: %w: %w", i, img.Reference, err, errdefs.ErrInvalidArgument)
			}
			img.Reference = named.String()
		}
		if img.Platform == (matcher.Platform{}) {
			p := platforms.Normalize(platforms.DefaultSpec())
			img.Platform = matcher.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
		}
		images[i] = img
	}
	d, err := s.fleet.Match(matcher.Request{Images: images, Rules: asked.Rules, Now: time.Now(), Explain: req.Explain})
	if errors.Is(err, matcher.ErrInvalidRequest) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return MatchAnswer{}, fmt.Errorf("match images: %w", err)
	}
	d.Warnings = append(warnings, d.Warnings...)
	return MatchAnswer{Decision: d, Asked: asked}, nil
}
