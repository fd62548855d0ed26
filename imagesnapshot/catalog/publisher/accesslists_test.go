package publisher_test

import (
	"context"
	"maps"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/publisher"
	"berth.dev/berth/readahead/accesslist"
)

// listTarget has access lists too.
type listTarget struct {
	*target
	lists map[string][]*accesslist.List
}

func (t *listTarget) PublishAccessLists(_ context.Context, id string, lists []*accesslist.List) error {
	return t.do(func() { t.lists[id] = lists })
}

// published are the lists that are there now.
func (t *listTarget) published() map[string][]*accesslist.List {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.lists)
}

// Lists follow their entry, and each change that the publisher is told of; those of entries that others do not get stay
// here.
func TestAccessListsArePublished(t *testing.T) {
	record := filepath.Join(t.TempDir(), "published")
	synctest.Test(t, func(t *testing.T) {
		from := &source{later: make(chan catalog.Change), entries: []catalog.Entry{entry(t, "a", "cloud"), entry(t, "local", "loop")}}
		to := &listTarget{target: &target{entries: map[string]catalog.Entry{}}, lists: map[string][]*accesslist.List{}}
		kept := map[string][]*accesslist.List{"a": {{Image: "one"}}, "local": {{Image: "two"}}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		p := publisher.New(publisher.Config{
			From: from, To: to, Target: "there", Records: record, Publishable: func(e *catalog.Entry) bool { return e.Source.Driver != "loop" },
			Lists: func(_ context.Context, id string) ([]*accesslist.List, error) { return kept[id], nil }, ListsTo: to,
		})
		go func() { ended <- p.Run(ctx) }()
		synctest.Wait()
		require.Equal(t, map[string][]*accesslist.List{"a": {{Image: "one"}}}, to.published())

		p.TouchLists("local")
		synctest.Wait()
		kept["a"] = append(kept["a"], &accesslist.List{Image: "three"})
		to.mu.Lock()
		to.faults = 1
		to.mu.Unlock()
		p.TouchLists("a")
		synctest.Wait()
		require.Len(t, to.published()["a"], 1, "the share is not there")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, to.published()["a"], 2)
		require.NotContains(t, to.published(), "local")
		cancel()
		require.NoError(t, <-ended)
	})
}
