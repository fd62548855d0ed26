package policy

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
)

// Quota is how many image snapshots of a kind an owner may have.
type Quota struct {
	// Most of them; 0 is no limit.
	Most int
	// Automatic says that only automatic ones count.
	Automatic bool
}

// Quotas that an image snapshot counts for. That of automatic ones comes first: they make room for one another before
// anything else has to.
func Quotas(l imagesnapshot.Limits, origin imagesnapshot.Origin) []Quota {
	all := Quota{Most: l.MaxPerOwner}
	if origin != imagesnapshot.OriginAutomatic {
		return []Quota{all}
	}
	return []Quota{{Most: l.MaxAutomatic, Automatic: true}, all}
}

// Excess is by how many the image snapshots of an owner are too many, and those that may go, in the order in which they
// should. One that is being deleted does not count.
func (q Quota) Excess(owned []*imagesnapshot.ImageSnapshot) (excess int, victims []*imagesnapshot.ImageSnapshot) {
	if q.Most == 0 {
		return 0, nil
	}
	var counted []*imagesnapshot.ImageSnapshot
	for _, s := range owned {
		if s.Status.Phase != imagesnapshot.PhaseDeleting && (!q.Automatic || s.Origin == imagesnapshot.OriginAutomatic) {
			counted = append(counted, s)
		}
	}
	if excess = len(counted) - q.Most; excess <= 0 {
		return excess, nil
	}
	return excess, Victims(counted)
}

// Refusal says that the quota is used up. Its class is errdefs.ErrResourceExhausted.
func (q Quota) Refusal() error {
	what := "image snapshots"
	if q.Automatic {
		what = "automatic image snapshots"
	}
	return fmt.Errorf("%d %s are allowed for each owner, and none of them may be eliminated; delete one first: %w",
		q.Most, what, errdefs.ErrResourceExhausted)
}

// Victims are those that may go to make room, the least recently used first. One that is being built may not.
func Victims(list []*imagesnapshot.ImageSnapshot) []*imagesnapshot.ImageSnapshot {
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
		if c := LastUse(a).Compare(LastUse(b)); c != 0 {
			return c
		}
		return a.Created.Compare(b.Created)
	})
	return v
}
