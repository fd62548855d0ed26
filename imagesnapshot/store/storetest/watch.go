package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

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
