// Package storetest proves that a store of image snapshots does what package store says. Every store's tests run it.
package storetest

import (
	"context"
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
	store.AccessLists
}

// Config says how to test a store.
type Config struct {
	// New returns an empty store, which it closes by t.Cleanup.
	New func(t *testing.T) Full
	// Reopen gives the same store anew, as after a restart of the process, and closes the old one. Nil if it keeps
	// nothing.
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
		"access lists":        accessLists,
		"access lists bound":  accessListsAreBounded,
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
				Garbage: []imagesnapshot.Leftover{{VolumeSnapshotName: "s"}}, Built: &imagesnapshot.Content{VolumeSnapshots: []imagesnapshot.VolumeSnapshot{{Name: "s"}}}},
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
