package lazy

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// testSpeed makes round figures: a block takes 10 ms to be touched and 10 ms to come.
func testSpeed() Speed {
	return Speed{BlockBytes: 1000, FirstTouch: 10 * time.Millisecond, RestoreRate: 100_000, Latency: time.Millisecond, Rate: 1_000_000, Parallel: 4}
}

// inTime runs what is measured with a clock that moves only when all sleep, and returns what it says.
func inTime(t *testing.T, size int64, speed Speed, do func(v *Volume)) (took time.Duration, stats Stats) {
	synctest.Test(t, func(t *testing.T) {
		v, err := New(size, speed)
		require.NoError(t, err)
		v.sleep = func(until time.Time) { time.Sleep(time.Until(until)) }
		start := time.Now()
		do(v)
		took, stats = time.Since(start), v.Stats()
	})
	return took, stats
}

func TestFirstReadOfEachBlock(t *testing.T) {
	took, stats := inTime(t, 100_000, testSpeed(), func(v *Volume) {
		for b := range int64(5) {
			require.NoError(t, v.Read(b*1000+10, 100))
		}
	})
	require.Equal(t, 5*20*time.Millisecond, took, "touched and brought one after another")
	require.Equal(t, Stats{Blocks: 100, Restored: 5, Reads: 5, Bytes: 500}, stats)
}

func TestRestoredBlocks(t *testing.T) {
	took, stats := inTime(t, 100_000, testSpeed(), func(v *Volume) {
		require.NoError(t, v.Read(0, 1000))
		require.NoError(t, v.Read(0, 1000))
		require.NoError(t, v.Read(500, 500))
	})
	require.Equal(t, 20*time.Millisecond+2*time.Millisecond+1500*time.Microsecond, took, "latency and bytes, twice")
	require.Equal(t, int64(1), stats.Restored)
}

// Blocks that are read at once share latency, up to Parallel, but never the bandwidth.
func TestBandwidthIsShared(t *testing.T) {
	took, stats := inTime(t, 100_000, testSpeed(), func(v *Volume) {
		var readers sync.WaitGroup
		for b := range int64(4) {
			readers.Go(func() { require.NoError(t, v.Read(b*1000, 10)) })
		}
		readers.Wait()
	})
	require.Equal(t, 10*time.Millisecond+4*10*time.Millisecond, took)
	require.Equal(t, int64(4), stats.Restored)

	took, _ = inTime(t, 100_000, testSpeed(), func(v *Volume) { require.NoError(t, v.Read(0, 20_000)) })
	require.Equal(t, 10*time.Millisecond+20*10*time.Millisecond, took, "one large read: the pipe never runs dry")
}

func TestOneBlockIsBroughtOnce(t *testing.T) {
	took, stats := inTime(t, 100_000, testSpeed(), func(v *Volume) {
		var readers sync.WaitGroup
		for range 50 {
			readers.Go(func() { require.NoError(t, v.Read(0, 10)) })
		}
		readers.Wait()
	})
	require.Equal(t, 20*time.Millisecond, took)
	require.Equal(t, int64(1), stats.Restored)
}

func TestEnd(t *testing.T) {
	took, stats := inTime(t, 1500, testSpeed(), func(v *Volume) {
		require.NoError(t, v.Read(1000, 100_000))
		require.NoError(t, v.Read(1500, 1))
		require.NoError(t, v.Read(5000, 1))
	})
	require.Equal(t, 15*time.Millisecond, took, "half a block")
	require.Equal(t, Stats{Blocks: 2, Restored: 1, Reads: 1, Bytes: 500}, stats)
}

func TestHoldAndFail(t *testing.T) {
	failure := errors.New("gone")
	synctest.Test(t, func(t *testing.T) {
		v, err := New(100_000, testSpeed())
		require.NoError(t, err)
		v.sleep = func(until time.Time) { time.Sleep(time.Until(until)) }
		v.Hold()
		v.Hold()
		got := make(chan error, 2)
		for range 2 {
			go func() { got <- v.Read(0, 1) }()
		}
		synctest.Wait()
		require.Equal(t, int64(2), v.Stats().Waiting)
		require.Zero(t, v.Stats().Restored)
		v.Release()
		v.Release()
		require.NoError(t, <-got)
		require.NoError(t, <-got)
		require.Zero(t, v.Stats().Waiting)
		v.Fail(failure)
		require.ErrorIs(t, v.Read(5000, 1), failure)
		v.Fail(nil)
		require.NoError(t, v.Read(5000, 1))
	})
}

func TestSpeedIsChecked(t *testing.T) {
	_, err := New(1, Typical())
	require.NoError(t, err)
	_, err = New(1, Speed{})
	require.Error(t, err)
}
