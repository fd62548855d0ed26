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

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
)

// addAs adds an image snapshot of app's layers that was made at a later hour, and on its own volume snapshot.
func (r *rig) addAs(id string, hour int, layers ...string) catalog.Entry {
	r.Helper()
	e := r.add("app", layers...)
	r.feed <- catalog.Change{Entry: &catalog.Entry{ID: e.ID}, Deleted: true}
	e.ID, e.Name, e.Created = id, "name-of-"+id, e.Created.Add(time.Duration(hour)*time.Hour)
	lookup := r.stage.sources[e.Source.VolumeSnapshotID]
	e.Source.VolumeSnapshotID = "snapshot-of-" + id
	r.stage.sources[e.Source.VolumeSnapshotID] = lookup
	r.publish(e)
	return e
}

// What cannot be attached costs the pull nothing but time: the next best is tried within the same wait, and the uses
// are those of the one that serves.
func TestNextBestIsTried(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.addAs("good", 0, "base", "app")
		for i := range 3 {
			id := fmt.Sprintf("bad-%d", i)
			r.addAs(id, 1+i, "base", "app")
			r.stage.bad["snapshot-of-"+id] = errors.New("no such volume snapshot")
		}
		w := want("app", "base", "app")
		require.Equal(r, 4*time.Second, r.pull(w))
		_, err := r.stage.Locate(w.LayerName)
		require.NoError(r, err, "the pull goes on with the disk")
		rec, _ := r.Last(ref("app"))
		var tried []string
		for _, d := range rec.Disks {
			tried = append(tried, d.ID+" "+string(d.Result))
		}
		require.Equal(r, []string{"bad-2 failed", "bad-1 failed", "bad-0 failed", "good ready"}, tried)
		require.Equal(r, 4*time.Second, rec.Waited)
		require.Equal(r, "good", rec.Decision.Chosen[0].ID)
		require.Equal(r, []string{"good"}, r.credited, "what could not be attached is not used")
		require.Empty(r, r.unmatched)
	})
}

// The next best does not have a wait of its own: a pull waits as long as configured, and so do its other layers.
func TestNextBestWithinTheSameWait(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.stage.delay = 3 * time.Second
		r.addAs("good", 0, "base", "app")
		r.addAs("bad", 1, "base", "app")
		r.stage.bad["snapshot-of-bad"] = errors.New("no such volume snapshot")
		w := want("app", "base", "app")
		require.Equal(r, 5*time.Second, r.pull(w))
		require.Zero(r, r.pull(w), "of another layer: it was waited for already")
		time.Sleep(time.Second)
		synctest.Wait()
		require.Zero(r, r.pull(w), "it is there")
		_, err := r.stage.Locate(w.LayerName)
		require.NoError(r, err)
		staged, _, _ := r.stage.names()
		require.Len(r, staged, 2)
	})
}

// If all fail, each is tried once in a pull, however long its wait and however many pulls there are at once, and the
// image counts as one that nothing has.
func TestEachIsTriedOnce(t *testing.T) {
	inBubble(t, func(c *ondemand.Config) { c.Wait = time.Minute }, func(r *rig) {
		r.stage.fail = errors.New("storage says no")
		for i := range 4 {
			r.addAs(fmt.Sprintf("bad-%d", i), i, "base", "app")
		}
		w := want("app", "base", "app")
		var pulls sync.WaitGroup
		for range 20 {
			pulls.Go(func() { r.Ready(context.Background(), w) })
		}
		pulls.Wait()
		staged, _, _ := r.stage.names()
		require.Len(r, staged, 4)
		require.Len(r, r.unmatched, 20)
		require.Empty(r, r.credited)
		r.stage.fail = nil
		time.Sleep(time.Second)
		r.pull(w)
		_, err := r.stage.Locate(w.LayerName)
		require.NoError(r, err, "none is passed over for good")
	})
}

// Of several image snapshots with the same content, the one that was chosen has the use, not the first by name.
func TestUseIsCreditedToTheChosen(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		e := r.addAs("b", 2, "base", "app")
		r.addAs("a", 0, "base", "app")
		r.addAs("c", 1, "base", "app")
		_, identity, err := e.Parse()
		require.NoError(r, err)
		owner := func() string {
			_, id, ok := r.ImageSnapshot(identity.UUID)
			require.True(r, ok)
			return id
		}
		require.Equal(r, "a", owner(), "nothing better is known")
		r.stage.disks["by-hand"] = &stage.DiskStatus{Name: "by-hand", UUID: identity.UUID, State: stage.StateIdle, ImageSnapshot: stage.ImageSnapshot{ID: "c"}}
		require.Equal(r, "c", owner(), "its disk is attached, from before a restart")
		delete(r.stage.disks, "by-hand")
		r.pull(want("app", "base", "app"))
		require.Equal(r, []string{"b"}, r.credited)
		require.Equal(r, "b", owner())
		staged, _, _ := r.stage.names()
		require.True(r, strings.HasPrefix(staged[0], "name-of-b-"), staged[0])
		require.Equal(r, "b", r.stage.Disks()[0].ImageSnapshot.ID)
		r.addAs("d", 3, "base", "app")
		require.Equal(r, "b", owner())
		r.Ready(context.Background(), want("app", "base", "app"))
		require.Equal(r, []string{"b", "d"}, r.credited)
		require.Equal(r, "d", owner(), "it was chosen last, and the disk of b serves it")
		r.feed <- catalog.Change{Entry: &catalog.Entry{ID: "d"}, Deleted: true}
		r.feed <- catalog.Change{Synced: true}
		require.Equal(r, "b", owner(), "the disk was attached for it")
		r.feed <- catalog.Change{Entry: &catalog.Entry{ID: "b"}, Deleted: true}
		r.feed <- catalog.Change{Synced: true}
		require.NotEqual(r, "b", owner(), "it is gone")
	})
}
