package lifecycle_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/readahead/accesslist"
)

// TestDelete is C-25: deletion works in every phase, and aborts what is being built.
func TestDelete(t *testing.T) {
	remove := func(w *world, name string) {
		s, err := w.engine.Delete(w.Context(), lifecycle.DeleteRequest{NameOrID: name})
		require.NoError(w, err)
		require.Equal(w, imagesnapshot.PhaseDeleting, s.Status.Phase)
		require.False(w, s.DeletionRequested.IsZero())
		begin := time.Now()
		w.awaitGone(name)
		require.Less(w, time.Since(begin), 5*time.Second)
		w.requireStorage()
		require.Zero(w, w.builder.running)
	}
	update := func(w *world) {
		_, err := w.engine.Update(w.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: spec(refC)})
		require.NoError(w, err)
	}
	for name, reach := range map[string]func(*world){
		"Creating": func(w *world) { w.settle(30 * time.Second) },
		"Creating, waiting for the snapshot": func(w *world) {
			w.settle(2 * time.Minute)
			require.Equal(w, imagesnapshot.StepWait, w.get("one").Status.Work.Step)
		},
		"Available": func(w *world) { w.await("one", imagesnapshot.PhaseAvailable) },
		"Updating": func(w *world) {
			w.await("one", imagesnapshot.PhaseAvailable)
			update(w)
			w.settle(30 * time.Second)
			require.Equal(w, imagesnapshot.PhaseUpdating, w.get("one").Status.Phase)
		},
		"UpdateFailed": func(w *world) {
			w.await("one", imagesnapshot.PhaseAvailable)
			w.builder.set(0, errdefs.ErrNotFound)
			update(w)
			w.await("one", imagesnapshot.PhaseUpdateFailed)
		},
		"Failed": func(w *world) {
			w.builder.set(0, errdefs.ErrNotFound)
			w.await("one", imagesnapshot.PhaseFailed)
		},
		"Unavailable": func(w *world) {
			w.builder.set(100*time.Hour, nil)
			w.restart()
			w.await("one", imagesnapshot.PhaseUnavailable)
		},
	} {
		t.Run(name, func(t *testing.T) {
			newWorld(t, func(w *world) {
				w.create("one", spec(refA))
				reach(w)
				remove(w, "one")
			}, func(w *world) { w.ready = time.Hour })
		})
	}
	t.Run("Pending", func(t *testing.T) {
		newWorld(t, func(w *world) {
			w.create("first", spec(refA))
			w.settle(time.Second)
			w.create("one", spec(refA))
			synctest.Wait()
			require.Equal(t, imagesnapshot.PhasePending, w.get("one").Status.Phase)
			_, err := w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
			require.NoError(t, err)
			w.awaitGone("one")
			require.Equal(t, imagesnapshot.PhaseCreating, w.get("first").Status.Phase)
		})
	})
}

// TestDeletePreconditions is C-22.
func TestDeletePreconditions(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseAvailable)
		for _, p := range []lifecycle.Preconditions{{ID: "another"}, {ResourceVersion: "1"}, {ID: s.ID, ResourceVersion: "1"}} {
			_, err := w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one", Preconditions: p})
			require.True(t, errdefs.IsConflict(err), "%v", err)
		}
		good := lifecycle.Preconditions{ID: s.ID, ResourceVersion: s.ResourceVersion}
		dry, err := w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one", Preconditions: good, DryRun: true})
		require.NoError(t, err)
		require.Equal(t, imagesnapshot.PhaseDeleting, dry.Status.Phase)
		w.settle(time.Minute)
		require.Equal(t, s, w.get("one"))
		_, err = w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: s.ID, Preconditions: good})
		require.NoError(t, err, "by ID")
		w.awaitGone("one")
		_, err = w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
		require.True(t, errdefs.IsNotFound(err))
	})
}

// TestUpdate is E-28: in Ready and UpdateFailed only, and the switch comes when the new content is complete.
func TestUpdate(t *testing.T) {
	newWorld(t, func(w *world) {
		update := func(s imagesnapshot.Spec) error {
			_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: s})
			return err
		}
		w.create("one", spec(refA))
		require.True(t, errdefs.IsFailedPrecondition(update(spec(refC))), "Pending")
		w.settle(30 * time.Second)
		require.True(t, errdefs.IsFailedPrecondition(update(spec(refC))), "Creating")
		old := w.await("one", imagesnapshot.PhaseAvailable)

		require.NoError(t, update(spec(refC)))
		w.settle(30 * time.Second)
		s := w.get("one")
		require.Equal(t, imagesnapshot.PhaseUpdating, s.Status.Phase)
		require.Equal(t, old.Status.Content, s.Status.Content, "the old content is kept")
		require.False(t, s.Usable(time.Now(), false))
		require.True(t, s.Usable(time.Now(), true), "serveOldDuringUpdate")
		require.True(t, errdefs.IsFailedPrecondition(update(spec(refA))), "Updating")
		w.requireContent(s)

		w.builder.set(0, fmt.Errorf("pull https://user:secret@registry.example/x?sig=secret: %w", errdefs.ErrUnauthenticated))
		w.await("one", imagesnapshot.PhaseAvailable) // it had begun with the build that succeeds
		require.NoError(t, update(spec(refA)))
		s = w.await("one", imagesnapshot.PhaseUpdateFailed)
		require.Equal(t, imagesnapshot.ReasonImageUnavailable, s.Status.Reason)
		require.NotContains(t, fmt.Sprintf("%+v", s), "secret")
		require.Equal(t, refC, s.Status.Images[0].Reference)
		require.Equal(t, []string{refA}, s.Spec.Images)
		require.NotEqual(t, s.Generation, s.Status.ObservedGeneration)
		w.requireStorage(s)
		w.requireContent(s)

		w.builder.set(0, nil)
		require.NoError(t, update(spec(refA)), "the same again is another try")
		s = w.await("one", imagesnapshot.PhaseAvailable)
		require.Equal(t, refA, s.Status.Images[0].Reference)
		require.Equal(t, s.Generation, s.Status.ObservedGeneration)
		w.requireStorage(s)
		w.requireContent(s)

		// Deleting takes time here; else it may be over before it is refused to update.
		w.fake.Misbehave(blockdevtest.Misbehaviour{Latency: blockdevtest.Between{Least: time.Second, Most: time.Second}})
		_, err := w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
		require.NoError(t, err)
		require.True(t, errdefs.IsFailedPrecondition(update(spec(refC))), "Deleting")
	})
}

func TestUpdateWithoutBuild(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseAvailable)
		sp := spec("a:1")
		sp.RetentionDays = 2
		_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: sp, DryRun: true})
		require.NoError(t, err)
		require.Equal(t, s, w.get("one"), "dry run")
		_, err = w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: sp, Preconditions: lifecycle.Preconditions{ResourceVersion: "1"}})
		require.True(t, errdefs.IsConflict(err))
		_, err = w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: sp, Labels: map[string]string{"k": "v"}})
		require.NoError(t, err)
		synctest.Wait()
		now := w.get("one")
		require.Equal(t, imagesnapshot.PhaseAvailable, now.Status.Phase)
		require.Equal(t, s.Status.Ready.AddDate(0, 0, 2), now.Status.Expires)
		require.Equal(t, map[string]string{"k": "v"}, now.Labels)
		require.Len(t, w.builder.builds, 1)

		_, err = w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: sp, Rebuild: true})
		require.NoError(t, err)
		w.settle(time.Second)
		w.await("one", imagesnapshot.PhaseAvailable)
		require.Len(t, w.builder.builds, 2)
	})
}

// A request that changes nothing is no change: no write, no event, no build.
func TestUpdateThatChangesNothing(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		w.await("one", imagesnapshot.PhaseAvailable)
		update := func(req lifecycle.UpdateRequest) *imagesnapshot.ImageSnapshot {
			req.NameOrID = "one"
			r, err := w.engine.Update(t.Context(), req)
			require.NoError(t, err)
			synctest.Wait()
			return r.Object
		}
		labels := map[string]string{"k": "v"}
		update(lifecycle.UpdateRequest{Spec: spec(refA), Labels: labels})
		before := w.get("one")
		w.settle(time.Hour)
		require.Equal(t, before, w.get("one"), "nothing else writes meanwhile")
		for name, req := range map[string]lifecycle.UpdateRequest{
			"the same":                      {Spec: spec(refA), Labels: labels},
			"as it is stored":               {Spec: before.Spec, Labels: before.Labels, Annotations: before.Annotations},
			"no labels given":               {Spec: spec(refA)},
			"annotations, still none":       {Spec: spec(refA), Annotations: map[string]string{}},
			"a reference in its short form": {Spec: spec("a:1")},
			"dry run":                       {Spec: spec(refA), DryRun: true},
		} {
			require.Equal(t, before, update(req), name)
			require.Equal(t, before, w.get("one"), name)
		}
		require.Len(t, w.builder.builds, 1)

		after := update(lifecycle.UpdateRequest{Spec: spec(refA), Labels: map[string]string{}})
		require.Empty(t, after.Labels)
		require.NotEqual(t, before.ResourceVersion, after.ResourceVersion, "labels were removed")
		last := len(before.Status.Events) - 1
		require.Equal(t, before.Status.Events[last].Count+1, after.Status.Events[last].Count, "and that is an event")
	})
}

// An update is built by what was recorded since the first build.
func TestUpdateUsesAccessLists(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.Empty(t, w.builder.builds[0].AccessLists)
		list := &accesslist.List{Image: refA, Platform: "linux/amd64", Recorded: time.Unix(1000, 0).UTC()}
		require.NoError(t, w.store.PutAccessList(t.Context(), s.ID, list))
		_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: s.Spec, Rebuild: true})
		require.NoError(t, err)
		w.settle(time.Second)
		w.await("one", imagesnapshot.PhaseAvailable)
		require.Equal(t, []*accesslist.List{list}, w.builder.builds[1].AccessLists)
	})
}

func TestTimeoutOfUpdate(t *testing.T) {
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.Build.TimeoutMinutes = 30
		w.create("one", sp)
		old := w.await("one", imagesnapshot.PhaseAvailable)
		w.builder.set(100*time.Hour, nil)
		sp.Images = []string{refC}
		_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: sp})
		require.NoError(t, err)
		w.settle(31 * time.Minute)
		s := w.await("one", imagesnapshot.PhaseUpdateFailed)
		require.Equal(t, imagesnapshot.ReasonBuildTimeout, s.Status.Reason)
		require.Equal(t, old.Status.Content, s.Status.Content)
		w.requireStorage(s)
	})
}
