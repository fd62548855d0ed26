package lifecycle

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// CreateRequest asks for an image snapshot.
type CreateRequest struct {
	Name, Owner, ClientToken string
	Labels, Annotations      map[string]string
	Spec                     imagesnapshot.Spec
	// DryRun checks everything and does nothing.
	DryRun bool
}

// CreateResult is what a create made or found.
type CreateResult struct {
	Object *imagesnapshot.ImageSnapshot
	// Existing says that it was there already, by its client token or because an automatic one is made once.
	Existing bool
	Warnings []string
}

// Create accepts an image snapshot; Run builds it. Errors: imagesnapshot.FieldError (InvalidArgument), AlreadyExists
// for a name that is taken, Conflict for a client token that came with another request, ResourceExhausted for an owner
// whose quota is used up.
func (e *Engine) Create(ctx context.Context, req CreateRequest) (CreateResult, error) {
	return e.create(ctx, req, imagesnapshot.OriginManual)
}

// AutomaticRequest asks for the image snapshot of a set of images that nothing matched.
type AutomaticRequest struct {
	Owner             string
	Images, Platforms []string
	Registries        []imagesnapshot.Registry
	// Labels and Annotations are those of the first who asks.
	Labels, Annotations map[string]string
	// DryRun checks everything and does nothing.
	DryRun bool
}

// EnsureAutomatic creates the one automatic image snapshot of an owner for a set of images (E-5), or finds it: however
// many ask, one is made. It may be in any phase; one that failed is not tried again before it is gone.
func (e *Engine) EnsureAutomatic(ctx context.Context, req AutomaticRequest) (CreateResult, error) {
	return e.create(ctx, CreateRequest{
		Name: imagesnapshot.AutomaticName(req.Owner, req.Images, req.Platforms), Owner: req.Owner,
		Labels: req.Labels, Annotations: req.Annotations, DryRun: req.DryRun,
		Spec: imagesnapshot.Spec{
			Images: req.Images, Platforms: req.Platforms, Registries: req.Registries,
			Size: imagesnapshot.Size{AsNeeded: true}, ReuseLayers: true, Elimination: imagesnapshot.EliminationLRU,
		},
	}, imagesnapshot.OriginAutomatic)
}

func (e *Engine) create(ctx context.Context, req CreateRequest, origin imagesnapshot.Origin) (CreateResult, error) {
	now := time.Now().UTC()
	s := &imagesnapshot.ImageSnapshot{
		Metadata: imagesnapshot.Metadata{
			Name: req.Name, ID: uuid.NewString(), Generation: 1, Created: now, Owner: req.Owner, Origin: origin,
			ClientToken: req.ClientToken, Labels: req.Labels, Annotations: req.Annotations,
		},
		Spec:   req.Spec.Clone(),
		Status: imagesnapshot.Status{Phase: imagesnapshot.PhasePending, Reason: imagesnapshot.ReasonAccepted, LastUpdated: now},
	}
	s = s.Clone()
	s.Complete(e.limits)
	if err := s.Validate(e.limits); err != nil {
		return CreateResult{}, fmt.Errorf("create image snapshot: %w", err)
	}
	s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonAccepted, "accepted")
	result := CreateResult{Object: s, Warnings: s.Warnings(0)}
	for _, w := range result.Warnings {
		s.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonWarning, w)
	}

	created, found, err := e.quotas.admit(ctx, s,
		func() (*imagesnapshot.ImageSnapshot, error) { return e.existing(ctx, s) },
		func() (*imagesnapshot.ImageSnapshot, error) {
			if req.DryRun {
				return s, nil
			}
			return e.objects.store.Create(ctx, s)
		})
	switch {
	case found:
		return CreateResult{Object: created, Existing: true}, err
	case err != nil:
		return CreateResult{}, err
	}
	result.Object = created
	return result, nil
}

// existing finds what the same request made before.
func (e *Engine) existing(ctx context.Context, s *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error) {
	if s.ClientToken != "" {
		list, err := e.objects.store.List(ctx, store.Filter{Owner: &s.Owner, ClientToken: s.ClientToken})
		if err != nil {
			return nil, err
		}
		if len(list) > 0 {
			if list[0].Name != s.Name || list[0].Generation == 1 && !reflect.DeepEqual(list[0].Spec, s.Spec) {
				return nil, fmt.Errorf("create image snapshot %s: its client token came with another request, that for %s; use another token: %w",
					s.Name, list[0].Name, errdefs.ErrConflict)
			}
			return list[0], nil
		}
	}
	have, err := e.objects.store.Get(ctx, s.Name)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// A user may give a name that looks automatic, for other images.
	if s.Origin == imagesnapshot.OriginAutomatic && have.Origin == s.Origin && have.Owner == s.Owner {
		return have, nil
	}
	what := ""
	if have.Owner == s.Owner {
		what = fmt.Sprintf(" (it is %s)", have.Status.Phase)
	}
	return nil, fmt.Errorf("create image snapshot %s: the name is taken%s; choose another: %w", s.Name, what, errdefs.ErrAlreadyExists)
}
