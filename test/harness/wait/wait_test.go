package wait_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/wait"
)

func TestUntilReturnsWhenTheConditionIsMet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		err := wait.Until(t.Context(), time.Minute, "the third look", func(context.Context) error {
			if looks++; looks < 3 {
				return errors.New("not yet")
			}
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, 3, looks)
	})
}

func TestUntilNamesWhatItWaitedForAndTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := errors.New("no socket")
		start := time.Now()
		err := wait.Until(t.Context(), time.Second, "a socket", func(context.Context) error { return answer })
		require.ErrorIs(t, err, answer)
		require.ErrorContains(t, err, "a socket (1s)")
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestUntilObeysTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := wait.Until(ctx, time.Hour, "nothing", func(ctx context.Context) error { return ctx.Err() })
	require.ErrorIs(t, err, context.Canceled)
}
