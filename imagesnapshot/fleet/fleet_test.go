package fleet_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/fleet"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/matcher"
)

const ref = "docker.io/library/app:1"

func TestFollowsTheStore(t *testing.T) {
	s, err := boltstore.Open(filepath.Join(t.TempDir(), "s.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	var attached atomic.Pointer[map[digest.Digest]bool]
	attached.Store(&map[digest.Digest]bool{})
	f := fleet.New(s, s, func() map[digest.Digest]bool { return *attached.Load() })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()

	ask := func() matcher.Explanation {
		d, err := f.Match(matcher.Request{Images: []matcher.Image{{Reference: ref}}, Rules: matcher.Rules{AutoMatch: true, Pin: matcher.Pin{Name: "nightly"}}})
		require.NoError(t, err)
		if len(d.Candidates) == 0 {
			return matcher.Explanation{}
		}
		return d.Candidates[0]
	}
	eventually := func(what string, ok func(matcher.Explanation) bool) {
		t.Helper()
		require.Eventually(t, func() bool { return ok(ask()) }, 10*time.Second, time.Millisecond, what)
	}

	object, err := s.Create(ctx, &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Name: "nightly", ID: "id-1"},
		Spec: imagesnapshot.Spec{Images: []string{ref}}, Status: imagesnapshot.Status{Phase: imagesnapshot.PhaseCreating}})
	require.NoError(t, err)
	eventually("one that is being built is known, and not ready", func(e matcher.Explanation) bool { return e.Verdict == matcher.VerdictNotReady }) // C-3

	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, layerdisktest.Image{Reference: ref, Layers: []string{"a", "b"}})
	encoded, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	d := digest.SHA256.FromBytes(encoded)
	require.NoError(t, s.PutIndex(ctx, d, encoded))
	object.Status.Phase, object.Status.Identity.IndexDigest, object.Status.Ready = imagesnapshot.PhaseAvailable, d, time.Now()
	object, err = s.Update(ctx, object)
	require.NoError(t, err)
	eventually("once it is available it is chosen", func(e matcher.Explanation) bool { return e.Verdict == matcher.VerdictChosen })
	require.False(t, ask().Attached)
	attached.Store(&map[digest.Digest]bool{d: true})
	require.True(t, ask().Attached)
	attached.Store(&map[digest.Digest]bool{})
	require.False(t, ask().Attached)

	require.NoError(t, s.Delete(ctx, "nightly", object.ResourceVersion))
	eventually("what is deleted is forgotten", func(e matcher.Explanation) bool { return e.Name == "" })
	_, err = s.Create(ctx, &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Name: "nightly", ID: "id-2"},
		Status: imagesnapshot.Status{Phase: imagesnapshot.PhaseAvailable, Content: imagesnapshot.Content{Identity: layerdisk.Identity{IndexDigest: digest.FromString("lost")}}}})
	require.NoError(t, err)
	require.Empty(t, ask().Name, "one whose index is lost cannot be chosen")

	cancel()
	require.NoError(t, <-ended)
}
