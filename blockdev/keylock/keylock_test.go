package keylock_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/keylock"
)

func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set keylock.Set
		inside, release := make(chan string, 3), make(chan struct{})
		for _, key := range []string{"a", "a", "b"} {
			go func() {
				err := set.Do(t.Context(), key, func() error {
					inside <- key
					<-release
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		require.Len(t, inside, 2, "two keys, two operations")
		require.ElementsMatch(t, []string{"a", "b"}, []string{<-inside, <-inside})
		release <- struct{}{}
		release <- struct{}{}
		synctest.Wait()
		require.Equal(t, "a", <-inside, "the second of one key comes after the first")
		release <- struct{}{}
	})
}

func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set keylock.Set
		release := make(chan struct{})
		go func() {
			_ = set.Do(t.Context(), "a", func() error { <-release; return nil })
		}()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- set.Do(ctx, "a", func() error { t.Error("ran"); return nil }) }()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.ErrorIs(t, set.Do(ctx, "b", func() error { t.Error("ran"); return nil }), context.Canceled)
		close(release)
		boom := errors.New("boom")
		require.ErrorIs(t, set.Do(t.Context(), "a", func() error { return boom }), boom)
		require.NoError(t, set.Do(t.Context(), "a", func() error { return nil }), "an error frees the key")
	})
}
