package publisher_test

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/catalogtest"
	"berth.dev/berth/imagesnapshot/catalog/publisher"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// source lists what it has and then what it is told.
type source struct {
	entries []catalog.Entry
	later   chan catalog.Change
}

func (s *source) Watch(ctx context.Context) (<-chan catalog.Change, error) {
	out := make(chan catalog.Change)
	go func() {
		defer close(out)
		first := []catalog.Change{}
		for _, e := range s.entries {
			first = append(first, catalog.Change{Entry: &e})
		}
		for _, c := range append(first, catalog.Change{Synced: true}) {
			select {
			case out <- c:
			case <-ctx.Done():
				return
			}
		}
		for {
			select {
			case c := <-s.later:
				out <- c
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, ctx.Err()
}

// target fails as often as it is told to.
type target struct {
	mu      sync.Mutex
	entries map[string]catalog.Entry
	faults  int
	calls   int
	hang    chan struct{}
}

func (t *target) do(change func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls++
	if t.hang != nil {
		<-t.hang
	}
	if t.faults > 0 {
		t.faults--
		return fmt.Errorf("the share is not there: %w", errdefs.ErrUnavailable)
	}
	change()
	return nil
}

func (t *target) Publish(_ context.Context, e catalog.Entry) error {
	return t.do(func() { t.entries[e.ID] = e })
}

func (t *target) Withdraw(_ context.Context, id string) error {
	return t.do(func() { delete(t.entries, id) })
}

func (t *target) ids() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.entries))
}

func entry(t *testing.T, id, driver string) catalog.Entry {
	e := catalogtest.Entry(t, id, layerdisktest.Image{Reference: "docker.io/library/nginx:1", Layers: []string{id}})
	e.Source.Driver = driver
	return e
}

// run runs a publisher in the bubble's time until the returned function is called.
func run(t *testing.T, record string, from *source, to *target) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	p := publisher.New(publisher.Config{From: from, To: to, Target: "there", Records: record, Publishable: func(e *catalog.Entry) bool { return e.Source.Driver != "loop" }})
	go func() { ended <- p.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		require.NoError(t, <-ended)
	}
}

func TestPublishAndWithdraw(t *testing.T) {
	record := filepath.Join(t.TempDir(), "published")
	synctest.Test(t, func(t *testing.T) {
		from := &source{later: make(chan catalog.Change), entries: []catalog.Entry{entry(t, "a", "cloud"), entry(t, "local", "loop")}}
		to := &target{entries: map[string]catalog.Entry{"others": {}}}
		stop := run(t, record, from, to)
		require.Equal(t, []string{"a", "others"}, to.ids(), "what others cannot attach is not for them")

		b := entry(t, "b", "cloud")
		from.later <- catalog.Change{Entry: &b}
		b2 := b
		b2.State = "Updating"
		from.later <- catalog.Change{Entry: &b2}
		synctest.Wait()
		require.Equal(t, []string{"a", "b", "others"}, to.ids())
		require.Equal(t, "Updating", to.entries["b"].State)
		from.later <- catalog.Change{Entry: &catalog.Entry{ID: "a"}, Deleted: true}
		synctest.Wait()
		require.Equal(t, []string{"b", "others"}, to.ids())
		local := b
		local.Source.Driver = "loop"
		from.later <- catalog.Change{Entry: &local}
		synctest.Wait()
		require.Equal(t, []string{"others"}, to.ids(), "it has moved to where others cannot have it")
		from.later <- catalog.Change{Entry: &b}
		synctest.Wait()
		stop()

		// What goes away while nobody runs is withdrawn by the next one, what is another's is not.
		from.entries = []catalog.Entry{entry(t, "c", "cloud")}
		stop = run(t, record, from, to)
		require.Equal(t, []string{"c", "others"}, to.ids())
		stop()
	})
}

// A target that fails is told again, ever less often, and then has everything; one that hangs does not keep the node
// from stopping.
func TestTargetThatFails(t *testing.T) {
	record := filepath.Join(t.TempDir(), "published")
	synctest.Test(t, func(t *testing.T) {
		from := &source{later: make(chan catalog.Change), entries: []catalog.Entry{entry(t, "a", "cloud")}}
		to := &target{entries: map[string]catalog.Entry{}, faults: 5}
		stop := run(t, record, from, to)
		require.Empty(t, to.ids())
		from.later <- catalog.Change{Entry: &catalog.Entry{ID: "a"}, Deleted: true}
		b := entry(t, "b", "cloud")
		from.later <- catalog.Change{Entry: &b}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"b"}, to.ids())
		require.Less(t, to.calls, 12)

		to.hang = make(chan struct{})
		c := entry(t, "c", "cloud")
		from.later <- catalog.Change{Entry: &c}
		synctest.Wait()
		stop()
		close(to.hang)
	})
}

// What was published in a target that is not configured any more is withdrawn from it, once that can be done; what
// others published there stays.
func TestWithdrawElsewhere(t *testing.T) {
	records := filepath.Join(t.TempDir(), "published")
	require.NoError(t, publisher.WithdrawElsewhere(t.Context(), records, "", nil), "nothing was ever published")
	to := &target{entries: map[string]catalog.Entry{"others": {}}}
	synctest.Test(t, func(t *testing.T) {
		from := &source{later: make(chan catalog.Change), entries: []catalog.Entry{entry(t, "a", "cloud"), entry(t, "b", "cloud")}}
		run(t, records, from, to)()
	})
	opened := 0
	open := func(name string) (catalog.Publisher, error) {
		opened++
		require.Equal(t, "there", name)
		return to, nil
	}
	require.NoError(t, publisher.WithdrawElsewhere(t.Context(), records, "there", open))
	require.Equal(t, []string{"a", "b", "others"}, to.ids())
	to.faults = 1
	require.ErrorIs(t, publisher.WithdrawElsewhere(t.Context(), records, "elsewhere", open), errdefs.ErrUnavailable)
	require.NoError(t, publisher.WithdrawElsewhere(t.Context(), records, "", open))
	require.Equal(t, []string{"others"}, to.ids())
	require.NoError(t, publisher.WithdrawElsewhere(t.Context(), records, "", open))
	require.Equal(t, 2, opened, "once it is done it is forgotten")
}
