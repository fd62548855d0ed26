package retry_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/retry"
)

func TestDo(t *testing.T) {
	busy := fmt.Errorf("attach: %w", blockdev.ErrThrottled)
	other := errors.New("other")
	for _, tc := range []struct {
		name    string
		answers []error
		want    error
		calls   int
	}{
		{"at once", []error{nil}, nil, 1},
		{"after a while", []error{busy, busy, nil}, nil, 3},
		{"never", nil, blockdev.ErrThrottled, retry.Attempts},
		{"other error", []error{other}, other, 1},
		{"in use is not retried", []error{blockdev.ErrInUse}, blockdev.ErrInUse, 1},
		{"other error later", []error{busy, other}, other, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls, start := 0, time.Now()
				err := retry.Do(t.Context(), func(context.Context) error {
					calls++
					if calls <= len(tc.answers) {
						return tc.answers[calls-1]
					}
					return busy
				})
				require.ErrorIs(t, err, tc.want)
				require.Equal(t, tc.calls, calls)
				require.Equal(t, time.Duration(1<<(calls-1)-1)*100*time.Millisecond, time.Since(start))
			})
		})
	}
}

func TestDoEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := retry.Do(ctx, func(context.Context) error { return blockdev.ErrThrottled })
		require.ErrorIs(t, err, blockdev.ErrThrottled)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 250*time.Millisecond, time.Since(start))
	})
}

// Drivers repeat their requests and their callers repeat drivers: the two do not multiply.
func TestDoWithinDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, start := 0, time.Now()
		request := func(ctx context.Context) error {
			return retry.Do(ctx, func(context.Context) error {
				calls++
				return blockdev.ErrThrottled
			})
		}
		require.ErrorIs(t, retry.Do(t.Context(), request), blockdev.ErrThrottled)
		require.Equal(t, retry.Attempts, calls)
		took := time.Since(start)
		calls, start = 0, time.Now()
		require.ErrorIs(t, request(t.Context()), blockdev.ErrThrottled)
		require.Equal(t, retry.Attempts, calls, "by itself it is repeated")
		require.Equal(t, took, time.Since(start))
	})
}
