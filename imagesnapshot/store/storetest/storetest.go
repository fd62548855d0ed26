// Package storetest proves that a store of image snapshots does what package store says. Every store's tests run it.
package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// Full is everything that a store can be asked for.
type Full interface {
	store.Store
	store.Watcher
	store.Indexes
}

// Config says how to test a store.
type Config struct {
	// New gives an empty store, which it closes by t.Cleanup.
	New func(t *testing.T) Full
	// Reopen gives the same store anew, as after a restart of the process, and closes the old one. Nil if it keeps nothing.
	Reopen func(t *testing.T, old Full) Full
}

// Suite runs all tests.
func Suite(t *testing.T, cfg Config) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Full){
		"create":              create,
		"create refuses":      createRefuses,
		"get":                 get,
		"list":                list,
		"update":              update,
		"update conflicts":    updateConflicts,
		"update concurrently": updateConcurrently,
		"delete":              remove,
		"name is used again":  nameIsUsedAgain,
		"no aliasing":         noAliasing,
		"watch":               watch,
		"watch slowly":        watchSlowly,
		"watch ends":          watchEnds,
		"indexes":             indexes,
		"context has ended":   contextHasEnded,
	} {
		t.Run(name, func(t *testing.T) { test(t, cfg.New(t)) })
	}
	if cfg.Reopen != nil {
		t.Run("reopen", func(t *testing.T) { reopen(t, cfg) })
	}
}

// Example is an image snapshot with something in every field that a store could lose.
func Example(name string) *imagesnapshot.ImageSnapshot {
	at := time.Date(2026, 5, 4, 3, 2, 1, 123456789, time.UTC)
	s := &imagesnapshot.ImageSnapshot{
		Metadata: imagesnapshot.Metadata{
			Name: name, ID: "id-of-" + name, Generation: 1, Created: at, Owner: "tenant", Origin: imagesnapshot.OriginManual,
			ClientToken: "token-" + name, Labels: map[string]string{"name": name}, Annotations: map[string]string{"a": "ünï"},
		},
		Spec: imagesnapshot.Spec{
			Images: []string{"docker.io/library/nginx:1.27"}, Platforms: []string{"linux/amd64"},
			Size: imagesnapshot.Size{GiB: 20}, RetentionDays: 7,
			Registries: []imagesnapshot.Registry{{Server: "registry.example", Secret: "pull", InsecureSkipVerify: true}},
			Build:      imagesnapshot.Build{TimeoutMinutes: 60, DNSServers: []string{"192.0.2.1"}, Parameters: map[string]string{"eipID": "1"}},
			Flash:      true, ReuseLayers: true, Elimination: imagesnapshot.EliminationLRU, Copies: imagesnapshot.Copies{Standard: 2, Flash: 1},
		},
		Status: imagesnapshot.Status{
			Phase: imagesnapshot.PhaseCreating, Reason: imagesnapshot.ReasonBuilding, Message: "m", Progress: 3, Started: at,
			Work: &imagesnapshot.Work{Step: imagesnapshot.StepBuild, Attempt: 2, VolumeName: "v",
				Garbage: []imagesnapshot.Leftover{{SnapshotName: "s"}}, Built: &imagesnapshot.Content{Snapshots: []imagesnapshot.VolumeSnapshot{{Name: "s"}}}},
		},
	}
	s.AddEvent(at, imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, "again")
	return s
}

func put(t *testing.T, s store.Store, name string) *imagesnapshot.ImageSnapshot {
	t.Helper()
	obj, err := s.Create(t.Context(), Example(name))
	require.NoError(t, err)
	return obj
}

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
		{"no such label", store.Filter{Labels: map[string]string{"other": ""}}, nil},
	} {
		got, err := s.List(t.Context(), test.filter)
		require.NoError(t, err, test.name)
		require.Equal(t, test.want, got, test.name)
	}
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
		obj.Status.Work.VolumeName, obj.Status.Work.Built.Snapshots[0].Name = "spoilt", "spoilt"
		obj.Status.Work.Garbage[0].SnapshotName = "spoilt"
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

const patience = 10 * time.Second

func receive(t *testing.T, changes <-chan store.Change) store.Change {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case c, ok := <-changes:
		require.True(t, ok, "the watch ended")
		return c
	case <-timer.C:
		require.FailNow(t, "no change came")
		return store.Change{}
	}
}

func watch(t *testing.T, s Full) {
	a, b := put(t, s, "a"), put(t, s, "b")
	changes, err := s.Watch(t.Context())
	require.NoError(t, err)
	first := map[string]*imagesnapshot.ImageSnapshot{}
	for range 2 {
		c := receive(t, changes)
		require.False(t, c.Deleted)
		first[c.Object.Name] = c.Object
	}
	require.Equal(t, map[string]*imagesnapshot.ImageSnapshot{"a": a, "b": b}, first, "what there is comes first")

	c := put(t, s, "c")
	require.Equal(t, store.Change{Object: c}, receive(t, changes))
	a, err = s.Update(t.Context(), a)
	require.NoError(t, err)
	require.Equal(t, store.Change{Object: a}, receive(t, changes))
	require.NoError(t, s.Delete(t.Context(), "b", b.ResourceVersion))
	gone := receive(t, changes)
	require.True(t, gone.Deleted)
	require.Equal(t, "b", gone.Object.Name)
	require.Equal(t, b.ID, gone.Object.ID)
}

// watchSlowly wants the last state of every object, however many there were while nobody looked.
func watchSlowly(t *testing.T, s Full) {
	changes, err := s.Watch(t.Context())
	require.NoError(t, err)
	const objects, updates = 3, 200
	want := map[string]string{}
	for i := range objects {
		obj := put(t, s, fmt.Sprintf("n%d", i))
		for range updates / objects {
			obj, err = s.Update(t.Context(), obj)
			require.NoError(t, err)
		}
		want[obj.Name] = obj.ResourceVersion
	}
	got := map[string]string{}
	for received := 0; !equal(want, got); received++ {
		require.LessOrEqual(t, received, updates+objects)
		c := receive(t, changes)
		got[c.Object.Name] = c.Object.ResourceVersion
	}
}

func equal(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

func watchEnds(t *testing.T, s Full) {
	put(t, s, "a")
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := s.Watch(ctx)
	require.NoError(t, err)
	cancel()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case _, ok := <-changes:
			if !ok {
				put(t, s, "b") // nobody is told, nothing blocks
				return
			}
		case <-timer.C:
			require.FailNow(t, "the watch goes on after its context has ended")
		}
	}
}

func indexes(t *testing.T, s Full) {
	data := []byte("an index")
	d := digest.SHA256.FromBytes(data)
	_, err := s.GetIndex(t.Context(), d)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	require.True(t, errdefs.IsInvalidArgument(s.PutIndex(t.Context(), digest.SHA256.FromString("other"), data)))
	require.NoError(t, s.PutIndex(t.Context(), d, data))
	require.NoError(t, s.PutIndex(t.Context(), d, data))
	got, err := s.GetIndex(t.Context(), d)
	require.NoError(t, err)
	require.Equal(t, data, got)
	got[0] = 'A'
	got, err = s.GetIndex(t.Context(), d)
	require.NoError(t, err)
	require.Equal(t, data, got)
	all, err := s.ListIndexes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []digest.Digest{d}, all)
	require.NoError(t, s.DeleteIndex(t.Context(), d))
	require.NoError(t, s.DeleteIndex(t.Context(), d))
	all, err = s.ListIndexes(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
}

func contextHasEnded(t *testing.T, s Full) {
	obj := put(t, s, "one")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Create(ctx, Example("two"))
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.Update(ctx, obj)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, s.Delete(ctx, "one", obj.ResourceVersion), context.Canceled)
	_, err = s.List(ctx, store.Filter{})
	require.ErrorIs(t, err, context.Canceled)
	all, err := s.List(t.Context(), store.Filter{})
	require.NoError(t, err)
	require.Equal(t, []*imagesnapshot.ImageSnapshot{obj}, all)
}

func reopen(t *testing.T, cfg Config) {
	s := cfg.New(t)
	a, b := put(t, s, "a"), put(t, s, "b")
	require.NoError(t, s.Delete(t.Context(), "b", b.ResourceVersion))
	data := []byte("an index")
	require.NoError(t, s.PutIndex(t.Context(), digest.SHA256.FromBytes(data), data))
	s = cfg.Reopen(t, s)
	all, err := s.List(t.Context(), store.Filter{})
	require.NoError(t, err)
	require.Equal(t, []*imagesnapshot.ImageSnapshot{a}, all)
	got, err := s.GetIndex(t.Context(), digest.SHA256.FromBytes(data))
	require.NoError(t, err)
	require.Equal(t, data, got)
	require.NotEqual(t, b.ResourceVersion, put(t, s, "b").ResourceVersion, "versions are not used again after a restart")
	_, err = s.Update(t.Context(), a)
	require.NoError(t, err, "versions stay the same over a restart")
}
