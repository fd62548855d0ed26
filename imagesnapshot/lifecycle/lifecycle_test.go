package lifecycle_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// TestCreate is also C-47, C-50, C-51 and A-10: status with digests and sizes, and the volume snapshot's ID and name.
func TestCreate(t *testing.T) {
	newWorld(t, func(w *world) {
		w.ready = 0
		begin := time.Now().UTC()
		s := w.create("one", spec("a:1", refC))
		require.Equal(t, imagesnapshot.PhasePending, s.Status.Phase)
		w.settle(30 * time.Second)
		s = w.get("one")
		require.Equal(t, imagesnapshot.PhaseCreating, s.Status.Phase)
		require.Greater(t, s.Status.Progress, 0)
		require.Less(t, s.Status.Progress, 100)
		require.False(t, s.Usable(time.Now(), true), "E-26")

		s = w.await("one", imagesnapshot.PhaseAvailable)
		require.True(t, s.Usable(time.Now(), false))
		require.Equal(t, 100, s.Status.Progress)
		require.Equal(t, begin.Add(time.Minute), s.Status.Ready)
		require.Zero(t, s.Status.Expires, "A-7: no retention is for ever")
		require.Equal(t, refA, s.Spec.Images[0], "A-12")
		ix := layerdisktest.Index("erofs", layerdisktest.Image{Reference: refA, Layers: []string{"base", "a"}})
		require.Equal(t, imagesnapshot.Image{
			Reference: refA, Platform: "linux/amd64", Digest: ix.Images[0].Manifest.Digest, SizeBytes: 2 << 30, Layers: 2,
		}, s.Status.Images[0])
		require.Equal(t, 5, s.Status.Layers)
		require.Len(t, s.Status.Snapshots, 1)
		require.Equal(t, s.Status.Snapshots[0].ID, s.Status.SnapshotID)
		require.Equal(t, s.Status.Snapshots[0].Name, s.Status.SnapshotName)
		require.EqualValues(t, 20<<30, s.Status.Snapshots[0].SizeBytes)
		require.Contains(t, reasons(s), imagesnapshot.ReasonReady)
		w.requireStorage(s)
		w.requireContent(s)
	})
}

func TestCopies(t *testing.T) {
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.Copies.Standard = 3
		w.create("one", sp)
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.Len(t, s.Status.Snapshots, 3)
		w.requireStorage(s)
		w.requireContent(s)
	})
}

func TestClientToken(t *testing.T) {
	newWorld(t, func(w *world) {
		req := lifecycle.CreateRequest{Name: "one", ClientToken: "token", Spec: spec(refA)}
		first, err := w.engine.Create(t.Context(), req)
		require.NoError(t, err)
		require.False(t, first.Existing)
		again, err := w.engine.Create(t.Context(), req)
		require.NoError(t, err)
		require.True(t, again.Existing)
		require.Equal(t, first.Object.ID, again.Object.ID)
		w.await("one", imagesnapshot.PhaseAvailable)
		w.restart()
		again, err = w.engine.Create(t.Context(), req)
		require.NoError(t, err, "after a restart")
		require.Equal(t, first.Object.ID, again.Object.ID)

		other := req
		other.Spec = spec(refC)
		_, err = w.engine.Create(t.Context(), other)
		require.True(t, errdefs.IsConflict(err), "%v", err)
		other = req
		other.ClientToken = "another"
		_, err = w.engine.Create(t.Context(), other)
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		other = req
		other.Name, other.Owner = "two", "somebody"
		two, err := w.engine.Create(t.Context(), other)
		require.NoError(t, err, "tokens are per owner")
		require.False(t, two.Existing)
	})
}

func TestCreateRefusesAndDryRun(t *testing.T) {
	newWorld(t, func(w *world) {
		_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "Bad", Spec: spec(refA)})
		require.ErrorAs(t, err, new(*imagesnapshot.FieldError))
		r, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "one", Spec: spec(refA), DryRun: true})
		require.NoError(t, err)
		require.Equal(t, "one", r.Object.Name)
		w.settle(time.Minute)
		_, err = w.store.Get(t.Context(), "one")
		require.True(t, errdefs.IsNotFound(err))
	})
}

// TestQuota is A-3.
func TestQuota(t *testing.T) {
	newWorld(t, func(w *world) {
		for i := range 50 {
			w.create(fmt.Sprintf("n%d", i), spec(refA))
		}
		_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "more", Spec: spec(refA)})
		require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
		_, err = w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "more", Owner: "other", Spec: spec(refA)})
		require.NoError(t, err, "per owner")
		_, err = w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "n7"})
		require.NoError(t, err)
		w.create("instead", spec(refA))
	})
}

// TestElimination is ECI's EliminationStrategy: only those marked LRU go, the least recently matched first.
func TestElimination(t *testing.T) {
	newWorld(t, func(w *world) {
		lru := spec(refA)
		lru.Elimination = imagesnapshot.EliminationLRU
		w.create("kept", spec(refA))
		for _, name := range []string{"old", "used"} {
			w.create(name, lru)
			w.await(name, imagesnapshot.PhaseAvailable)
			w.settle(time.Hour)
		}
		w.engine.RecordMatch("old", w.get("old").ID)
		w.settle(time.Hour)
		w.engine.RecordMatch("used", w.get("used").ID)
		w.settle(time.Hour)
		w.create("new", lru)
		w.awaitGone("old")
		w.await("new", imagesnapshot.PhaseAvailable)
		w.get("used")
		w.get("kept")
	}, func(w *world) { w.cfg.Limits.MaxPerOwner = 3 })
}

func TestEliminationSurvivesRestart(t *testing.T) {
	for at := 1; at <= 12; at++ {
		newWorld(t, func(w *world) {
			lru := spec(refA)
			lru.Elimination = imagesnapshot.EliminationLRU
			w.create("old", lru)
			w.await("old", imagesnapshot.PhaseAvailable)
			w.stop()
			w.start(at, true)
			w.ask(func() error {
				_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "new", ClientToken: "new", Spec: lru})
				return err
			})
			s := w.survive("new", imagesnapshot.PhaseAvailable)
			w.awaitGone("old")
			w.requireStorage(s)
		}, func(w *world) { w.cfg.Limits.MaxPerOwner = 1 })
	}
}

// TestMaxBuilds also shows that waiting does not count for the timeout.
func TestMaxBuilds(t *testing.T) {
	newWorld(t, func(w *world) {
		w.builder.set(20*time.Minute, nil)
		for i := range 4 {
			sp := spec(refA)
			sp.Build.TimeoutMinutes = 30
			w.create(fmt.Sprintf("n%d", i), sp)
		}
		for i := range 4 {
			w.await(fmt.Sprintf("n%d", i), imagesnapshot.PhaseAvailable)
		}
		require.Equal(t, 2, w.builder.most)
	}, func(w *world) { w.cfg.MaxBuilds = 2 })
}

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

// TestRetention is A-7 and Q11: expired is unavailable first, then deleted.
func TestRetention(t *testing.T) {
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.RetentionDays = 7
		w.create("one", sp)
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.Equal(t, s.Status.Ready.Add(7*24*time.Hour), s.Status.Expires)
		w.restart()
		w.settle(time.Until(s.Status.Expires) - time.Second)
		require.True(t, w.get("one").Usable(time.Now(), false))
		w.settle(time.Second)
		expired := w.get("one")
		require.Equal(t, imagesnapshot.PhaseUnavailable, expired.Status.Phase)
		require.Equal(t, imagesnapshot.ReasonExpired, expired.Status.Reason)
		w.requireStorage(s) // still there for those who attach it now
		w.settle(9 * time.Minute)
		w.get("one")
		w.settle(2 * time.Minute)
		w.awaitGone("one")
		w.requireStorage()
	})
}

// TestFailedIsKeptOneDay with its reason, and frees the volume at once.
func TestFailedIsKeptOneDay(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec("nothing:1"))
		s := w.await("one", imagesnapshot.PhaseFailed)
		require.Equal(t, imagesnapshot.ReasonImageUnavailable, s.Status.Reason)
		require.Contains(t, s.Status.Message, "nothing")
		w.requireStorage()
		w.settle(23 * time.Hour)
		require.Equal(t, imagesnapshot.PhaseFailed, w.get("one").Status.Phase)
		w.settle(time.Hour)
		w.awaitGone("one")
	})
}

// TestTimeout is C-39 and Q12.
func TestTimeout(t *testing.T) {
	newWorld(t, func(w *world) {
		w.builder.set(100*time.Hour, nil)
		sp := spec(refA)
		sp.Build.TimeoutMinutes = 30
		w.create("one", sp)
		w.settle(29 * time.Minute)
		require.Equal(t, imagesnapshot.PhaseCreating, w.get("one").Status.Phase)
		w.settle(time.Minute + time.Second)
		s := w.get("one")
		require.Equal(t, imagesnapshot.PhaseUnavailable, s.Status.Phase)
		require.Equal(t, imagesnapshot.ReasonBuildTimeout, s.Status.Reason)
		require.Zero(t, w.builder.running)
		w.requireStorage()
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

// TestAutomatic is E-5: one per image set, however many ask.
func TestAutomatic(t *testing.T) {
	newWorld(t, func(w *world) {
		ids := make(chan string, 20)
		for i := range cap(ids) {
			images := []string{"a:1", refC}
			if i%2 == 1 {
				images = []string{"docker.io/library/c:1", "docker.io/library/a:1"}
			}
			go func() {
				r, err := w.engine.EnsureAutomatic(w.Context(), lifecycle.AutomaticRequest{Images: images})
				if err != nil {
					ids <- err.Error()
					return
				}
				ids <- r.Object.ID
			}()
		}
		first := <-ids
		for range cap(ids) - 1 {
			require.Equal(t, first, <-ids)
		}
		s, err := w.engine.Find(t.Context(), first)
		require.NoError(t, err)
		require.Equal(t, imagesnapshot.OriginAutomatic, s.Origin)
		s = w.await(s.Name, imagesnapshot.PhaseAvailable)
		require.Len(t, w.builder.builds, 1)
		require.EqualValues(t, 3*5*5<<30, s.Status.Snapshots[0].SizeBytes, "Q15: three times the five compressed layers")

		other, err := w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Owner: "other", Images: []string{refA, refC}})
		require.NoError(t, err)
		require.NotEqual(t, s.Name, other.Object.Name, "owners share nothing")
	})
}

// TestUnusedAutomatic is E-30 as Q8 reads it.
func TestUnusedAutomatic(t *testing.T) {
	newWorld(t, func(w *world) {
		ensure := func(ref string) *imagesnapshot.ImageSnapshot {
			r, err := w.engine.EnsureAutomatic(t.Context(), lifecycle.AutomaticRequest{Images: []string{ref}})
			require.NoError(t, err)
			return w.await(r.Object.Name, imagesnapshot.PhaseAvailable)
		}
		unused := ensure(refA)
		used := ensure(refC)
		manual := w.create("manual", spec(refAB))
		w.settle(2 * 24 * time.Hour)
		w.engine.RecordMatch(used.Name, used.ID)
		w.settle(24*time.Hour - 10*time.Minute)
		require.True(t, w.get(unused.Name).Usable(time.Now(), false))
		w.settle(30 * time.Minute)
		w.awaitGone(unused.Name)
		used = w.get(used.Name)
		require.Equal(t, imagesnapshot.PhaseAvailable, used.Status.Phase, "used within three days")
		require.EqualValues(t, 1, used.Status.MatchCount)
		w.settle(24 * time.Hour)
		w.get(used.Name)
		w.settle(24 * time.Hour)
		w.awaitGone(used.Name)
		w.settle(30 * 24 * time.Hour)
		require.Equal(t, imagesnapshot.PhaseAvailable, w.get(manual.Name).Status.Phase)
	})
}

func TestMatchesSurviveRestart(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseAvailable)
		for range 5 {
			w.engine.RecordMatch("one", s.ID)
		}
		w.engine.RecordMatch("one", "another object")
		w.engine.RecordMatch("none", "none")
		w.engine.RecordMatch("one", s.ID)
		now := time.Now().UTC()
		w.restart()
		got := w.get("one")
		require.EqualValues(t, 1, got.Status.MatchCount, "those of another object in between are another count")
		require.Equal(t, now, got.Status.LastMatched)
	})
}

// TestAsNeeded grows the volume when the builder says that it is too small.
func TestAsNeeded(t *testing.T) {
	newWorld(t, func(w *world) {
		w.builder.errs = []error{&lifecycle.TooSmallError{NeededBytes: 50<<30 + 1, Err: fmt.Errorf("out of space")}}
		sp := spec(refA)
		sp.Size.AsNeeded = true
		w.create("one", sp)
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.EqualValues(t, 51<<30, s.Status.Snapshots[0].SizeBytes)
		w.requireStorage(s)

		w.builder.set(0, &lifecycle.TooSmallError{NeededBytes: 500 << 30, Err: fmt.Errorf("out of space")})
		w.create("two", sp)
		two := w.await("two", imagesnapshot.PhaseFailed)
		require.Equal(t, imagesnapshot.ReasonTooSmall, two.Status.Reason)
		w.create("fixed", spec(refA))
		require.Equal(t, imagesnapshot.ReasonTooSmall, w.await("fixed", imagesnapshot.PhaseFailed).Status.Reason)
		w.requireStorage(s)
	})
}

// TestStorageFaults: what passes is waited for, what does not ends the work.
func TestStorageFaults(t *testing.T) {
	for _, op := range []string{"CreateVolume", "Attach", "Detach", "CreateSnapshot", "GetSnapshot", "DeleteVolume"} {
		t.Run(op, func(t *testing.T) {
			newWorld(t, func(w *world) {
				w.fake.Plan(blockdevtest.Fault{Op: op, Times: 20, Err: blockdev.ErrThrottled})
				w.create("one", spec(refA))
				s := w.await("one", imagesnapshot.PhaseAvailable)
				w.requireStorage(s)
				w.requireContent(s)
			}, func(w *world) { w.ready = time.Minute })
		})
		t.Run(op+", answer lost", func(t *testing.T) {
			newWorld(t, func(w *world) {
				w.fake.Plan(blockdevtest.Fault{Op: op, Times: 1, Err: blockdev.ErrThrottled, Done: true})
				w.create("one", spec(refA))
				s := w.await("one", imagesnapshot.PhaseAvailable)
				w.requireStorage(s)
				w.requireContent(s)
			})
		})
	}
	for _, op := range []string{"CreateVolume", "Attach", "CreateSnapshot"} {
		t.Run(op+" for good", func(t *testing.T) {
			newWorld(t, func(w *world) {
				w.fake.Plan(blockdevtest.Fault{Op: op, Err: blockdev.ErrUnsupported})
				w.create("one", spec(refA))
				s := w.await("one", imagesnapshot.PhaseFailed)
				require.Equal(t, imagesnapshot.ReasonStorageFailed, s.Status.Reason)
				w.requireStorage()
			})
		})
	}
}

// TestVolumeInUse waits with the clean-up for whoever has the volume.
func TestVolumeInUse(t *testing.T) {
	newWorld(t, func(w *world) {
		w.fake.Plan(blockdevtest.Fault{Op: "DeleteVolume", Times: 5, Err: blockdev.ErrInUse})
		w.create("one", spec(refA))
		w.settle(61 * time.Second)
		s := w.get("one")
		require.Equal(t, imagesnapshot.PhaseAvailable, s.Status.Phase, "usable before the clean-up is done")
		require.NotNil(t, s.Status.Work)
		s = w.await("one", imagesnapshot.PhaseAvailable)
		require.Contains(t, reasons(s), imagesnapshot.ReasonRetrying)
		w.requireStorage(s)
	})
}

func TestReuse(t *testing.T) {
	newWorld(t, func(w *world) {
		owner := func(name, owner string, images ...string) *imagesnapshot.ImageSnapshot {
			sp := spec(images...)
			sp.ReuseLayers = true
			_, err := w.engine.Create(t.Context(), lifecycle.CreateRequest{Name: name, Owner: owner, Spec: sp})
			require.NoError(t, err)
			return w.await(name, imagesnapshot.PhaseAvailable)
		}
		owner("foreign", "other", refAB)
		first := owner("first", "", refA)
		require.Empty(t, first.Status.BaseName, "another tenant's disk is never started from")
		owner("unrelated", "", refC)
		// Half of what is on "wide" is of no use to what follows, and less of it is shared than of "first".
		owner("wide", "", refA, refC)
		s := owner("second", "", refAB)
		require.Equal(t, "first", s.Status.BaseName)
		require.EqualValues(t, 500, s.Status.ReusedBytes)
		require.Contains(t, reasons(s), imagesnapshot.ReasonLayersReused)
		last := w.builder.builds[len(w.builder.builds)-1]
		require.True(t, last.Reuse)
		w.requireContent(s)

		// An update starts from what is there.
		w.builder.mu.Lock()
		w.builder.layers[refAB] = []string{"base", "a", "b2"}
		w.builder.mu.Unlock()
		_, err := w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "second", Spec: s.Spec, Rebuild: true})
		require.NoError(t, err)
		w.settle(time.Second)
		s = w.await("second", imagesnapshot.PhaseAvailable)
		require.Contains(t, []string{"first", "second"}, s.Status.BaseName)
	})
}

func TestReuseOfDamagedBase(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("first", spec(refA))
		w.await("first", imagesnapshot.PhaseAvailable)
		w.builder.errs = []error{errdefs.ErrDataLoss}
		sp := spec(refAB)
		sp.ReuseLayers = true
		w.create("second", sp)
		s := w.await("second", imagesnapshot.PhaseAvailable)
		require.Empty(t, s.Status.BaseName)
		require.Zero(t, s.Status.ReusedBytes)
		w.requireStorage(w.get("first"), s)
	})
}

func TestSweep(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		s := w.await("one", imagesnapshot.PhaseAvailable)
		prefix := s.Status.SnapshotName[:len("berth-000000000000-")]
		id := "0123456789abcdef0123456789abcdef"
		ours, err := w.fake.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: prefix + "v-" + id + "-1", SizeBytes: 4096})
		require.NoError(t, err)
		foreign := []string{"mine", prefix + "node", "berth-disk-" + id, prefix + "v-" + id, prefix + "v-" + id + "-x", "berth-ffffffffffff-v-" + id + "-1"}
		for _, name := range foreign {
			_, err := w.fake.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: 4096})
			require.NoError(t, err)
		}
		orphan, err := w.fake.CreateSnapshot(t.Context(), prefix+"s-"+id+"-1-0", ours.ID)
		require.NoError(t, err)
		report, err := w.engine.Sweep(t.Context(), false)
		require.NoError(t, err)
		require.Len(t, report.Orphans, 2)
		require.Empty(t, report.Deleted)
		_, err = w.fake.GetSnapshot(t.Context(), orphan.ID)
		require.NoError(t, err, "reported, not deleted")

		w.settle(15 * time.Minute) // the engine sweeps by itself
		_, err = w.fake.GetSnapshot(t.Context(), orphan.ID)
		require.True(t, errdefs.IsNotFound(err))
		volumes, err := w.fake.ListVolumes(t.Context())
		require.NoError(t, err)
		var left []string
		for _, v := range volumes {
			left = append(left, v.Name)
		}
		require.ElementsMatch(t, foreign, left)
		require.Equal(t, s, w.get("one"))
	})
}

// TestSnapshotLost: an image snapshot whose volume snapshot was deleted by somebody is not offered any more.
func TestSnapshotLost(t *testing.T) {
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.Copies.Standard = 2
		w.create("one", sp)
		s := w.await("one", imagesnapshot.PhaseAvailable)
		require.NoError(t, w.fake.DeleteSnapshot(t.Context(), s.Status.Snapshots[0].ID))
		w.settle(15 * time.Minute)
		one := w.get("one")
		require.Equal(t, imagesnapshot.PhaseAvailable, one.Status.Phase)
		require.Equal(t, s.Status.Snapshots[1].ID, one.Status.SnapshotID)
		require.NoError(t, w.fake.DeleteSnapshot(t.Context(), s.Status.Snapshots[1].ID))
		w.settle(15 * time.Minute)
		one = w.get("one")
		require.Equal(t, imagesnapshot.PhaseUnavailable, one.Status.Phase)
		require.Equal(t, imagesnapshot.ReasonSnapshotLost, one.Status.Reason)
		_, err := w.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
		require.NoError(t, err)
		w.awaitGone("one")
	})
}

func TestNewRefuses(t *testing.T) {
	_, err := lifecycle.New(lifecycle.Config{Limits: imagesnapshot.DefaultLimits(), Installation: "x"})
	require.True(t, errdefs.IsInvalidArgument(err))
	_, err = lifecycle.New(lifecycle.Config{Installation: "00000000-0000-0000-0000-000000000000"})
	require.True(t, errdefs.IsInvalidArgument(err))
}
