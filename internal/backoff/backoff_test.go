package backoff_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/backoff"
)

func TestDoubling(t *testing.T) {
	waits := backoff.Doubling{First: time.Second, Most: 10 * time.Second}
	for failures, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		require.Equal(t, want*time.Second, waits.After(failures), failures)
	}
	require.Equal(t, 10*time.Second, waits.After(math.MaxInt))
	require.Equal(t, time.Second, waits.After(-1))
}

// The longest wait holds even if the first is longer, and a wait is never more than a duration can say.
func TestDoublingAtItsBounds(t *testing.T) {
	require.Equal(t, time.Second, backoff.Doubling{First: time.Minute, Most: time.Second}.After(0))
	require.Equal(t, 24*time.Hour, backoff.Doubling{First: time.Nanosecond, Most: 24 * time.Hour}.After(1000))
}
