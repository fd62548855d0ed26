package ondemand_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/catalogtest"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// slowCatalog tells of an entry only when it is looked at, which takes its time.
type slowCatalog struct {
	feed
	takes time.Duration

	mu    sync.Mutex
	entry *catalog.Entry
	looks int
}

func (s *slowCatalog) Look(ctx context.Context) error {
	s.mu.Lock()
	s.looks++
	e := s.entry
	s.mu.Unlock()
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	if e != nil {
		s.feed <- catalog.Change{Entry: e}
	}
	s.feed <- catalog.Change{Looked: true}
	return nil
}

// withSlowCatalog has the rig follow one more catalog.
func withSlowCatalog(t *testing.T, takes time.Duration, test func(*rig, *slowCatalog)) {
	inBubble(t, nil, func(r *rig) {
		s := &slowCatalog{feed: make(feed), takes: takes}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- r.Follow(ctx, s, func() {}) }()
		synctest.Wait()
		test(r, s)
		cancel()
		require.ErrorIs(r, <-ended, context.Canceled)
	})
}

// published is in the catalog, which has not told of it.
func (s *slowCatalog) published(r *rig, id string, layers ...string) {
	e := catalogtest.Entry(r, id, layerdisktest.Image{Reference: ref(id), Layers: layers})
	ix, _, err := e.Parse()
	require.NoError(r, err)
	r.stage.sources[e.Source.VolumeSnapshotID] = layerdisk.NewLookup(ix)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entry = &e
}

// The first pull after an image snapshot was published finds it, whether or not others are known.
func TestPullLooksAtTheCatalog(t *testing.T) {
	withSlowCatalog(t, 10*time.Millisecond, func(r *rig, s *slowCatalog) {
		for _, id := range []string{"first", "second"} {
			s.published(r, id, "base-"+id, id)
			w := want(id, "base-"+id, id)
			require.Equal(r, time.Second+10*time.Millisecond, r.pull(w))
			_, err := r.stage.Locate(w.LayerName)
			require.NoError(r, err, id)
		}
		require.Empty(r, r.unmatched)
		require.Equal(r, 2, s.looks)
		require.Zero(r, r.pull(want("second", "base-second", "second")))
		r.stage.serves = map[string]*layerdisk.Lookup{} // asked again, and known
		r.Ready(context.Background(), want("second", "base-second", "second"))
		require.Equal(r, 2, s.looks, "what is known is not looked for")
	})
}

// Pulls of what no catalog has, which are most on many nodes, make it be looked at for a tenth of the time at most, and
// pulls at once share a look.
func TestLooksAreBounded(t *testing.T) {
	withSlowCatalog(t, 10*time.Millisecond, func(r *rig, s *slowCatalog) {
		var pulls sync.WaitGroup
		for range 50 {
			pulls.Go(func() {
				for range 20 {
					r.pull(want("unknown", "u"))
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		start := time.Now()
		pulls.Wait()
		require.LessOrEqual(r, s.looks, 1+int(time.Since(start)/(100*time.Millisecond)))
		require.Greater(r, s.looks, 1)
		require.Len(r, r.unmatched, 1000)
	})
}

// A catalog that hangs costs one second now and then, and no pull waits longer than configured.
func TestLookAtACatalogThatHangs(t *testing.T) {
	withSlowCatalog(t, time.Hour, func(r *rig, s *slowCatalog) {
		require.Equal(r, time.Second, r.pull(want("unknown", "u")))
		require.Zero(r, r.pull(want("unknown", "u")))
		require.Equal(r, 1, s.looks)
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		r.Ready(ctx, want("unknown", "u"))
		require.Equal(r, 100*time.Millisecond, time.Since(start), "its context has ended")
		require.Equal(r, 2, s.looks)
	})
}
