package ondemand_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
)

func inBubble(t *testing.T, change func(*ondemand.Config), test func(*rig)) {
	synctest.Test(t, func(t *testing.T) { test(newRig(t, change)) })
}

func TestPullAttachesWhatItNeeds(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.add("other", "x", "y")
		r.add("app", "base", "app")
		require.Equal(r, time.Second, r.pull(want("app", "base", "app")), "as long as attaching takes")
		staged, _, _ := r.stage.names()
		require.Len(r, staged, 1)
		require.True(r, strings.HasPrefix(staged[0], "name-of-app-"), staged[0])
		rec, ok := r.Last(ref("app"))
		require.True(r, ok)
		require.Equal(r, matcher.OutcomeUse, rec.Decision.Outcome)
		require.Equal(r, time.Second, rec.Waited)
		require.Equal(r, []ondemand.DiskResult{{Name: "name-of-app", ID: "app", Disk: staged[0], Result: ondemand.ResultReady}}, rec.Disks)

		name, id, ok := r.ImageSnapshot(r.stage.Disks()[0].UUID)
		require.True(r, ok)
		require.Equal(r, "name-of-app app", name+" "+id)
		_, _, ok = r.ImageSnapshot("another")
		require.False(r, ok)

		require.Zero(r, r.pull(want("app", "base", "app")), "it is there")
		require.Equal(r, map[ondemand.Outcome]int{ondemand.OutcomeAttach: 1}, r.outcomes, "a hit asks nobody")
		require.Equal(r, map[ondemand.Result]int{ondemand.ResultReady: 1}, r.results)
	})
}

// The layers above the one that is asked for decide between disks that have that one.
func TestLayersAboveDecide(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.add("a", "base", "a")
		r.add("b", "base", "b1", "b2")
		r.add("c", "base", "b1")
		r.pull(want("unknown name", "base", "b1", "b2"))
		staged, _, _ := r.stage.names()
		require.Len(r, staged, 1)
		require.True(r, strings.HasPrefix(staged[0], "name-of-b-"), staged[0])
	})
}

// E-5: what no image snapshot has is told, also while there is none at all; sharing a base with one is not having it,
// and what an attached disk serves needs none.
func TestUnmatchedImagesAreTold(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.pull(want("app", "base", "app"))
		require.Equal(r, []string{ref("app")}, r.unmatched)
		r.unmatched = nil
		r.add("app", "base", "app")
		r.pull(want("app", "base", "app"))
		require.Empty(r, r.unmatched)
		r.pull(want("other", "base", "other"))
		require.Empty(r, r.unmatched, "the disk is attached and has the layer")
		r.pull(want("other", "other"))
		require.Equal(r, []string{ref("other")}, r.unmatched)
	})
	inBubble(t, nil, func(r *rig) {
		r.add("app", "base", "app")
		r.pull(want("other", "base", "other"))
		require.Equal(r, []string{ref("other")}, r.unmatched, "its disk is attached for the base all the same")
		staged, _, _ := r.stage.names()
		require.Len(r, staged, 1)
	})
}

func TestManyPullsMakeOneAttachment(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.add("app", "base", "app")
		var pulls sync.WaitGroup
		for range 50 {
			pulls.Go(func() { require.Equal(r, time.Second, r.pull(want("app", "base", "app"))) })
		}
		pulls.Wait()
		staged, _, _ := r.stage.names()
		require.Len(r, staged, 1)
		require.Equal(r, map[ondemand.Outcome]int{ondemand.OutcomeAttach: 1, ondemand.OutcomeJoin: 49}, r.outcomes)
	})
}

// A slow disk is waited for once, counted from when it was first wanted; a later pull finds it.
func TestSlowDiskIsWaitedForOnce(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.stage.delay = 20 * time.Second
		r.add("app", "base", "app")
		w := want("app", "base", "app")
		require.Equal(r, 5*time.Second, r.pull(w))
		rec, _ := r.Last(ref("app"))
		require.Equal(r, ondemand.ResultLate, rec.Disks[0].Result)
		for range 3 { // the other layers
			require.Zero(r, r.pull(w))
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		_, err := r.stage.Locate(w.LayerName)
		require.NoError(r, err)
		staged, _, _ := r.stage.names()
		require.Len(r, staged, 1)
	})
}

func TestWaitObeysContext(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.add("app", "base")
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		r.Ready(ctx, want("app", "base"))
		require.Equal(r, 100*time.Millisecond, time.Since(start))
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(r, 1, r.results[ondemand.ResultReady], "the attachment does not end with who asked for it")
	})
}

// A disk that cannot be attached is not tried for every layer, another one is taken meanwhile, and it is tried again
// later.
func TestDiskThatFails(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.stage.delay = 0
		r.stage.fail = errors.New("storage says no")
		r.add("app", "base", "app")
		w := want("app", "base", "app")
		r.pull(w)
		rec, _ := r.Last(ref("app"))
		require.Equal(r, ondemand.ResultFailed, rec.Disks[0].Result)
		require.ErrorContains(r, rec.Disks[0].Err, "storage says no")
		for range 5 {
			r.pull(w)
		}
		staged, _, _ := r.stage.names()
		require.Len(r, staged, 1, "not before a second is over")
		rec, _ = r.Last(ref("app"))
		require.Empty(r, rec.Disks)
		require.Equal(r, matcher.VerdictUnreachable, rec.Decision.Candidates[0].Verdict)
		require.Contains(r, rec.Decision.Candidates[0].Why, "storage says no")

		r.stage.fail = nil
		time.Sleep(time.Second)
		r.pull(w)
		rec, _ = r.Last(ref("app"))
		require.Equal(r, ondemand.ResultReady, rec.Disks[0].Result)
	})
}

// At the limit the idle disk that was not used for longest goes; one that is used, kept or just attached for a pull
// does not.
func TestLimit(t *testing.T) {
	inBubble(t, func(c *ondemand.Config) { c.MaxDisks = 2 }, func(r *rig) {
		names := map[string]string{}
		pull := func(id string) ondemand.DiskResult {
			time.Sleep(10 * time.Second)
			r.pull(want(id, id))
			rec, ok := r.Last(ref(id))
			require.True(r, ok)
			require.Len(r, rec.Disks, 1)
			names[id] = rec.Disks[0].Disk
			return rec.Disks[0]
		}
		for _, id := range []string{"a", "b", "c", "d"} {
			r.add(id, id)
		}
		require.Equal(r, ondemand.ResultReady, pull("a").Result)
		require.Equal(r, ondemand.ResultReady, pull("b").Result)
		time.Sleep(time.Second)
		r.stage.change(names["a"], func(d *stage.DiskStatus) { d.IdleSince = time.Now() }) // used meanwhile
		require.Equal(r, ondemand.ResultReady, pull("c").Result)
		_, unstaged, _ := r.stage.names()
		require.Equal(r, []string{names["b"]}, unstaged)

		r.stage.change(names["a"], func(d *stage.DiskStatus) { d.State, d.Holders = stage.StateInUse, 1 })
		r.stage.change(names["c"], func(d *stage.DiskStatus) { d.Keep = true })
		got := pull("d")
		require.Equal(r, ondemand.ResultNoRoom, got.Result)
		require.ErrorIs(r, got.Err, errdefs.ErrResourceExhausted)
		require.Equal(r, 2, r.stage.most)

		r.stage.change(names["c"], func(d *stage.DiskStatus) { d.Keep = false })
		require.Equal(r, ondemand.ResultReady, pull("d").Result, "having had no room is no fault of the disk")
		r.pull(want("b", "b"))
		rec, _ := r.Last(ref("b"))
		require.Equal(r, ondemand.ResultNoRoom, rec.Disks[0].Result, "the pull that d was attached for has not used it yet")
		require.Equal(r, 2, r.stage.most)
	})
}

// Pulls of different images at once never exceed the limit together.
func TestLimitHoldsForPullsAtOnce(t *testing.T) {
	inBubble(t, func(c *ondemand.Config) { c.MaxDisks = 3 }, func(r *rig) {
		var pulls sync.WaitGroup
		for i := range 10 {
			id := fmt.Sprintf("image-%d", i)
			r.add(id, id)
			pulls.Go(func() { r.pull(want(id, id)) })
		}
		pulls.Wait()
		require.Equal(r, 3, r.stage.most)
		require.Equal(r, map[ondemand.Result]int{ondemand.ResultReady: 3, ondemand.ResultNoRoom: 7}, r.results)
	})
}

// What is withdrawn, replaced, expired, not available or of another storage is not attached; its disk is let go.
func TestEntriesThatGo(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		e := r.add("app", "base", "app")
		w := want("app", "base", "app")
		r.pull(w)
		staged, _, _ := r.stage.names()
		changed := e
		changed.Source = catalog.Source{Driver: "loop", VolumeSnapshotID: "new"}
		r.stage.sources["new"] = r.stage.sources[e.Source.VolumeSnapshotID]
		r.publish(changed)
		synctest.Wait()
		_, unstaged, _ := r.stage.names()
		require.Equal(r, staged, unstaged)

		r.pull(w)
		staged, _, _ = r.stage.names()
		require.Len(r, staged, 2)
		r.stage.change(staged[1], func(d *stage.DiskStatus) { d.State, d.Holders = stage.StateInUse, 1 })
		r.feed <- catalog.Change{Entry: &catalog.Entry{ID: "app"}, Deleted: true}
		r.feed <- catalog.Change{Problem: errors.New("something else")}
		synctest.Wait()
		_, _, drained := r.stage.names()
		require.Equal(r, staged[1:], drained)
		require.Zero(r, r.Entries())

		for name, change := range map[string]func(*catalog.Entry){
			"expired": func(e *catalog.Entry) { e.Expires = time.Now() },
			"state":   func(e *catalog.Entry) { e.State = "Updating" },
			"driver":  func(e *catalog.Entry) { e.Source.Driver = "cloud" },
		} {
			other := e
			change(&other)
			r.publish(other)
			r.pull(w)
			again, _, _ := r.stage.names()
			require.Equal(r, staged, again, name)
			rec, _ := r.Last(ref("app"))
			require.Equal(r, matcher.OutcomePull, rec.Decision.Outcome, name)
		}
	})
}

// Disks that were attached otherwise count as what they are.
func TestDiskThatIsKnownAlready(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		e := r.add("app", "base", "app")
		_, identity, err := e.Parse()
		require.NoError(r, err)
		r.stage.disks["by-hand"] = &stage.DiskStatus{Name: "by-hand", UUID: identity.UUID, State: stage.StateMounting}
		w := want("app", "base", "app")
		require.Zero(r, r.pull(w), "the stage waits for it")
		for _, state := range []stage.State{stage.StateDraining, stage.StateFailed} {
			r.stage.change("by-hand", func(d *stage.DiskStatus) { d.State, d.LastError = state, errors.New("sick") })
			r.pull(w)
			rec, _ := r.Last(ref("app"))
			require.Equal(r, matcher.VerdictUnreachable, rec.Decision.Candidates[0].Verdict)
			require.Contains(r, rec.Decision.Candidates[0].Why, "by-hand")
		}
		staged, _, _ := r.stage.names()
		require.Empty(r, staged)
		delete(r.stage.disks, "by-hand")
		r.pull(w)
		staged, _, _ = r.stage.names()
		require.Len(r, staged, 1)
	})
}

// Only so many images are remembered, and no name that is too long.
func TestRecordsAreBounded(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.add("app", "base")
		for i := range 1100 {
			r.pull(want(fmt.Sprintf("image-%d", i), "unknown"))
		}
		_, ok := r.Last(ref("image-0"))
		require.False(r, ok)
		rec, ok := r.Last(ref("image-1099"))
		require.True(r, ok)
		require.NotEmpty(r, rec.Decision.Reason)
		long := want(strings.Repeat("x", 2000), "base")
		r.pull(long)
		_, ok = r.Last(long.ImageRef)
		require.False(r, ok)
		rec, ok = r.Last("", long.ChainID)
		require.True(r, ok, "by its layer")
		require.Equal(r, ondemand.ResultReady, rec.Disks[0].Result, "its layers match")
		require.Equal(r, 1, r.results[ondemand.ResultReady])
	})
}

// A catalog that hangs does not keep a node from stopping.
func TestFollowEndsThoughTheCatalogHangs(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- r.Follow(ctx, make(feed), func() {}) }()
		synctest.Wait()
		cancel()
		require.ErrorIs(r, <-ended, context.Canceled)
	})
}

func TestConfigIsChecked(t *testing.T) {
	_, err := ondemand.New(t.Context(), ondemand.Config{MaxDisks: -1})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}
