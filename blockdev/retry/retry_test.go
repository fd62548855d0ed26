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
	"berth.dev/berth/blockdev/blockdevtest"
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

// The last answer is not all that a caller has to know: the operation may have been done before.
func TestDoSaysWhatMayBeDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []error{blockdev.ErrThrottled, blockdev.ErrNoSpace}
		answer := func(context.Context) error {
			err := answers[0]
			answers = answers[1:]
			return err
		}
		err := retry.Do(t.Context(), answer)
		require.ErrorIs(t, err, blockdev.ErrNoSpace)
		require.ErrorIs(t, err, blockdev.ErrMayBeDone)

		answers = []error{blockdev.ErrNoSpace}
		require.NotErrorIs(t, retry.Do(t.Context(), answer), blockdev.ErrMayBeDone, "it was refused at once")
	})
}

// A driver that is busy for a while does everything at the first call.
func TestAround(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := blockdevtest.NewFake(0)
		driver := retry.Around(fake)
		provisioner, ok := driver.(blockdev.Provisioner)
		require.True(t, ok)
		busy := 2
		fake.OnCall(func(context.Context, blockdevtest.Action) error {
			if busy == 0 {
				return nil
			}
			busy--
			return blockdev.ErrThrottled
		})
		v, err := provisioner.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: 4096})
		require.NoError(t, err)
		busy = retry.Attempts
		_, err = driver.Attach(t.Context(), v.ID, blockdev.AttachOptions{})
		require.ErrorIs(t, err, blockdev.ErrThrottled)
		attached, err := driver.Attached(t.Context())
		require.NoError(t, err)
		require.Empty(t, attached)
		_, err = driver.Attach(t.Context(), v.ID, blockdev.AttachOptions{})
		require.NoError(t, err)
	})
}
