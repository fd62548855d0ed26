package storetest

import (
	"context"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

func create(t *testing.T, s Full) {
	got := put(t, s, "one")
	require.NotEmpty(t, got.ResourceVersion)
	want := Example("one")
	want.ResourceVersion = got.ResourceVersion
	require.Equal(t, want, got)
}

func createRefuses(t *testing.T, s Full) {
	first := put(t, s, "one")
	_, err := s.Create(t.Context(), Example("one"))
	require.True(t, errdefs.IsAlreadyExists(err), "the name: %v", err)
	other := Example("other")
	other.ID = first.ID
	_, err = s.Create(t.Context(), other)
	require.True(t, errdefs.IsAlreadyExists(err), "the ID: %v", err)
	_, err = s.Create(t.Context(), first)
	require.True(t, errdefs.IsInvalidArgument(err) || errdefs.IsAlreadyExists(err), "%v", err)
	all, err := s.List(t.Context(), store.Filter{})
	require.NoError(t, err)
	require.Equal(t, []*imagesnapshot.ImageSnapshot{first}, all)
}

func get(t *testing.T, s Full) {
	want := put(t, s, "one")
	got, err := s.Get(t.Context(), "one")
	require.NoError(t, err)
	require.Equal(t, want, got)
	_, err = s.Get(t.Context(), "two")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

func list(t *testing.T, s Full) {
	b, a := put(t, s, "b"), put(t, s, "a")
	foreign := Example("c")
	foreign.Owner = ""
	c, err := s.Create(t.Context(), foreign)
	require.NoError(t, err)
	tenant, nobody := "tenant", ""
	for _, test := range []struct {
		name   string
		filter store.Filter
		want   []*imagesnapshot.ImageSnapshot
	}{
		{"all, by name", store.Filter{}, []*imagesnapshot.ImageSnapshot{a, b, c}},
		{"owner", store.Filter{Owner: &tenant}, []*imagesnapshot.ImageSnapshot{a, b}},
		{"the empty owner", store.Filter{Owner: &nobody}, []*imagesnapshot.ImageSnapshot{c}},
		{"ID", store.Filter{ID: b.ID}, []*imagesnapshot.ImageSnapshot{b}},
		{"token", store.Filter{ClientToken: a.ClientToken}, []*imagesnapshot.ImageSnapshot{a}},
		{"token of another owner", store.Filter{ClientToken: a.ClientToken, Owner: &nobody}, nil},
		{"labels", store.Filter{Labels: map[string]string{"name": "c"}}, []*imagesnapshot.ImageSnapshot{c}},
		{"label with another value", store.Filter{Labels: map[string]string{"name": "d"}}, nil},
		{"after one that is there", store.Filter{After: "a"}, []*imagesnapshot.ImageSnapshot{b, c}},
		{"after one that is not there", store.Filter{After: "aa"}, []*imagesnapshot.ImageSnapshot{b, c}},
		{"after the last", store.Filter{After: "c"}, nil},
		{"the first two", store.Filter{Limit: 2}, []*imagesnapshot.ImageSnapshot{a, b}},
		{"the first one of an owner, after another", store.Filter{Owner: &tenant, After: "a", Limit: 1}, []*imagesnapshot.ImageSnapshot{b}},
		{"the first with a label", store.Filter{Labels: map[string]string{"name": "c"}, Limit: 1}, []*imagesnapshot.ImageSnapshot{c}},
		{"ID, behind it", store.Filter{ID: b.ID, After: "b"}, nil},
		{"no such label", store.Filter{Labels: map[string]string{"other": ""}}, nil},
	} {
		got, err := s.List(t.Context(), test.filter)
		require.NoError(t, err, test.name)
		require.Equal(t, test.want, got, test.name)
	}
	require.NoError(t, s.Delete(t.Context(), "a", a.ResourceVersion))
	b.Owner = ""
	b, err = s.Update(t.Context(), b)
	require.NoError(t, err)
	got, err := s.List(t.Context(), store.Filter{Owner: &nobody})
	require.NoError(t, err)
	require.Equal(t, []*imagesnapshot.ImageSnapshot{b, c}, got, "an owner may change")
	got, err = s.List(t.Context(), store.Filter{Owner: &tenant})
	require.NoError(t, err)
	require.Empty(t, got)
}

func update(t *testing.T, s Full) {
	obj := put(t, s, "one")
	before := obj.ResourceVersion
	obj.Status.Phase = imagesnapshot.PhaseAvailable
	obj.Status.Work = nil
	got, err := s.Update(t.Context(), obj)
	require.NoError(t, err)
	require.NotEqual(t, before, got.ResourceVersion)
	obj.ResourceVersion = got.ResourceVersion
	require.Equal(t, obj, got)
	again, err := s.Get(t.Context(), "one")
	require.NoError(t, err)
	require.Equal(t, got, again)
}

func updateConflicts(t *testing.T, s Full) {
	old := put(t, s, "one")
	current, err := s.Update(t.Context(), old)
	require.NoError(t, err)
	stale := old.Clone()
	stale.Status.Message = "stale"
	_, err = s.Update(t.Context(), stale)
	require.True(t, errdefs.IsConflict(err), "%v", err)
	stale.ResourceVersion = ""
	_, err = s.Update(t.Context(), stale)
	require.True(t, errdefs.IsConflict(err), "no version is not any version: %v", err)
	other := current.Clone()
	other.ID = "another"
	_, err = s.Update(t.Context(), other)
	require.True(t, errdefs.IsConflict(err), "another object: %v", err)
	_, err = s.Update(t.Context(), Example("none"))
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	got, err := s.Get(t.Context(), "one")
	require.NoError(t, err)
	require.Equal(t, current, got)
}

// updateConcurrently loses no update of those who read again after a conflict.
func updateConcurrently(t *testing.T, s Full) {
	put(t, s, "one")
	const writers, writes = 4, 10
	var group sync.WaitGroup
	errs := make(chan error, writers)
	for range writers {
		group.Go(func() {
			for done := 0; done < writes; {
				obj, err := s.Get(t.Context(), "one")
				if err == nil {
					obj.Status.MatchCount++
					_, err = s.Update(t.Context(), obj)
				}
				if err == nil {
					done++
				} else if !errdefs.IsConflict(err) {
					errs <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(errs)
	require.NoError(t, <-errs)
	obj, err := s.Get(t.Context(), "one")
	require.NoError(t, err)
	require.EqualValues(t, writers*writes, obj.Status.MatchCount)
}

func remove(t *testing.T, s Full) {
	obj := put(t, s, "one")
	current, err := s.Update(t.Context(), obj)
	require.NoError(t, err)
	require.True(t, errdefs.IsConflict(s.Delete(t.Context(), "one", obj.ResourceVersion)))
	require.True(t, errdefs.IsConflict(s.Delete(t.Context(), "one", "")))
	require.NoError(t, s.Delete(t.Context(), "one", current.ResourceVersion))
	require.True(t, errdefs.IsNotFound(s.Delete(t.Context(), "one", current.ResourceVersion)))
	_, err = s.Get(t.Context(), "one")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

func nameIsUsedAgain(t *testing.T, s Full) {
	old := put(t, s, "one")
	require.NoError(t, s.Delete(t.Context(), "one", old.ResourceVersion))
	again := Example("one")
	again.ID = "another"
	current, err := s.Create(t.Context(), again)
	require.NoError(t, err)
	require.NotEqual(t, old.ResourceVersion, current.ResourceVersion, "a version is never used again")
	_, err = s.Update(t.Context(), old)
	require.True(t, errdefs.IsConflict(err), "%v", err)
	require.True(t, errdefs.IsConflict(s.Delete(t.Context(), "one", old.ResourceVersion)))
}

func noAliasing(t *testing.T, s Full) {
	given := Example("one")
	created, err := s.Create(t.Context(), given)
	require.NoError(t, err)
	want := created.Clone()
	spoil := func(obj *imagesnapshot.ImageSnapshot) {
		obj.Labels["name"], obj.Annotations["a"], obj.Spec.Images[0] = "spoilt", "spoilt", "spoilt"
		obj.Spec.Build.Parameters["eipID"], obj.Status.Events[0].Message = "spoilt", "spoilt"
		obj.Status.Work.VolumeName, obj.Status.Work.Built.VolumeSnapshots[0].Name = "spoilt", "spoilt"
		obj.Status.Work.Garbage[0].VolumeSnapshotName = "spoilt"
		obj.Spec.Registries[0].Server, obj.Spec.Platforms[0], obj.Spec.Build.DNSServers[0] = "spoilt", "spoilt", "spoilt"
	}
	spoil(given)
	spoil(created)
	got, err := s.Get(t.Context(), "one")
	require.NoError(t, err)
	require.Equal(t, want, got)
	spoil(got)
	all, err := s.List(t.Context(), store.Filter{})
	require.NoError(t, err)
	require.Equal(t, want, all[0])
	spoil(all[0])
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := s.Watch(ctx)
	require.NoError(t, err)
	seen := receive(t, changes).Object
	require.Equal(t, want, seen)
	spoil(seen)
	got, err = s.Get(t.Context(), "one")
	require.NoError(t, err)
	require.Equal(t, want, got)
}
