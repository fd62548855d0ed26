package lifecycle

import (
	"context"
	"fmt"
	"reflect"
	"slices"
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
	s.Complete(e.Limits)
	if err := s.Validate(e.Limits); err != nil {
		return CreateResult{}, fmt.Errorf("create image snapshot: %w", err)
	}
	s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonAccepted, "accepted")
	result := CreateResult{Object: s, Warnings: s.Warnings(0)}
	for _, w := range result.Warnings {
		s.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonWarning, w)
	}

	e.admit.Lock()
	defer e.admit.Unlock()
	if existing, err := e.existing(ctx, s); err != nil || existing != nil {
		return CreateResult{Object: existing, Existing: true}, err
	}
	if err := e.checkQuota(ctx, s); err != nil {
		return CreateResult{}, fmt.Errorf("create image snapshot %s: %w", s.Name, err)
	}
	if req.DryRun {
		return result, nil
	}
	created, err := e.Store.Create(ctx, s)
	if err != nil {
		return CreateResult{}, err
	}
	result.Object = created
	return result, nil
}

// existing finds what the same request made before.
func (e *Engine) existing(ctx context.Context, s *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error) {
	if s.ClientToken != "" {
		list, err := e.Store.List(ctx, store.Filter{Owner: &s.Owner, ClientToken: s.ClientToken})
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
	have, err := e.Store.Get(ctx, s.Name)
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

// counts says whether an image snapshot counts for its owner's quota.
func counts(s *imagesnapshot.ImageSnapshot) bool {
	return s.Status.Phase != imagesnapshot.PhaseDeleting
}

// quota is how many image snapshots of a kind an owner may have; most is 0 for as many as they like.
type quota struct {
	most int
	of   func(*imagesnapshot.ImageSnapshot) bool
	what string
}

// quotas that an image snapshot counts for. That of automatic ones comes first: they make room for one another, before
// anything else has to.
func (e *Engine) quotas(s *imagesnapshot.ImageSnapshot) []quota {
	all := quota{e.Limits.MaxPerOwner, func(*imagesnapshot.ImageSnapshot) bool { return true }, "image snapshots"}
	if s.Origin != imagesnapshot.OriginAutomatic {
		return []quota{all}
	}
	return []quota{{e.Limits.MaxAutomatic, func(o *imagesnapshot.ImageSnapshot) bool { return o.Origin == imagesnapshot.OriginAutomatic }, "automatic image snapshots"}, all}
}

// excess is by how many these are too many, and those that count.
func (q quota) excess(list []*imagesnapshot.ImageSnapshot) (int, []*imagesnapshot.ImageSnapshot) {
	var counted []*imagesnapshot.ImageSnapshot
	for _, o := range list {
		if counts(o) && q.of(o) {
			counted = append(counted, o)
		}
	}
	if q.most == 0 {
		return 0, counted
	}
	return len(counted) - q.most, counted
}

func (q quota) refusal() error {
	return fmt.Errorf("%d %s are allowed for each owner, and none of them may be eliminated; delete one first: %w", q.most, q.what, errdefs.ErrResourceExhausted)
}

// checkQuota wants room for one more of the owner's, or somebody who can make room.
func (e *Engine) checkQuota(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	list, err := e.Store.List(ctx, store.Filter{Owner: &s.Owner})
	if err != nil {
		return err
	}
	list = append(list, s)
	for _, q := range e.quotas(s) {
		// Those accepted before, that are still waiting for room, come first.
		if excess, counted := q.excess(list); excess > 0 && len(victims(counted)) < excess {
			return q.refusal()
		}
	}
	return nil
}

// victims are those that may go to make room, the least recently used first. One that is being built may not.
func victims(list []*imagesnapshot.ImageSnapshot) []*imagesnapshot.ImageSnapshot {
	var v []*imagesnapshot.ImageSnapshot
	for _, s := range list {
		if s.Spec.Elimination != imagesnapshot.EliminationLRU || !s.DeletionRequested.IsZero() {
			continue
		}
		switch s.Status.Phase { //nolint:exhaustive // the others are at work
		case imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdateFailed, imagesnapshot.PhaseFailed, imagesnapshot.PhaseUnavailable:
			v = append(v, s)
		}
	}
	slices.SortFunc(v, func(a, b *imagesnapshot.ImageSnapshot) int {
		if c := lastUse(a).Compare(lastUse(b)); c != 0 {
			return c
		}
		return a.Created.Compare(b.Created)
	})
	return v
}

// lastUse is the last match, or for one that never matched the time since which it could have.
func lastUse(s *imagesnapshot.ImageSnapshot) time.Time {
	last := s.Created
	for _, t := range []time.Time{s.Status.Ready, s.Status.LastMatched} {
		if t.After(last) {
			last = t
		}
	}
	return last
}

// makeRoom eliminates as many as are too many for s to start, or says that there is no room. It is called when s
// begins, so it is repeated after a crash.
func (e *Engine) makeRoom(ctx context.Context, s *imagesnapshot.ImageSnapshot) error {
	e.admit.Lock()
	defer e.admit.Unlock()
	for _, q := range e.quotas(s) {
		if err := e.makeRoomWithin(ctx, s, q); err != nil {
			return err
		}
	}
	return nil
}

// makeRoomWithin one quota. admit is locked.
func (e *Engine) makeRoomWithin(ctx context.Context, s *imagesnapshot.ImageSnapshot, q quota) error {
	list, err := e.Store.List(ctx, store.Filter{Owner: &s.Owner})
	if err != nil {
		return err
	}
	excess, counted := q.excess(list)
	for _, v := range victims(counted) {
		if excess <= 0 {
			break
		}
		_, err := e.mutate(ctx, v.Name, v.ID, func(v *imagesnapshot.ImageSnapshot) error {
			return e.markDeleted(v, imagesnapshot.ReasonEliminated, fmt.Sprintf("made room for %s, being the least recently used", s.Name))
		})
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		excess--
	}
	if excess > 0 {
		return q.refusal()
	}
	return nil
}
