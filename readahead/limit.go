package readahead

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// limiter spreads bytes over time, for all replays of a node together. Nil or without a rate it does nothing.
type limiter struct {
	// rate in bytes a second.
	rate int64

	mu   sync.Mutex // guards free
	free time.Time
}

// wait for the turn of n bytes.
func (l *limiter) wait(ctx context.Context, n int64) error {
	if l == nil || l.rate <= 0 {
		return nil
	}
	l.mu.Lock()
	now := time.Now()
	turn := l.free
	if turn.Before(now) {
		turn = now
	}
	l.free = turn.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	l.mu.Unlock()
	timer := time.NewTimer(turn.Sub(now))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// recheckBytes are read between two looks at the memory.
const recheckBytes = 64 << 20

// budget of memory that one replay may fill.
type budget struct {
	share float64
	// available is how many bytes of memory can be had without harm.
	available func() (int64, error)

	mu sync.Mutex // guards what follows
	// left of what was found at the last look, and what was taken since.
	left, since int64
}

func newBudget(share float64, available func() (int64, error)) *budget {
	return &budget{share: share, available: available, left: -1}
}

// take says whether n bytes more may be read.
func (b *budget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < 0 || b.since >= recheckBytes {
		free, err := b.available()
		if err != nil {
			return false
		}
		// What was read counts as available memory again: only the smaller of both budgets is one.
		now := int64(float64(free) * b.share)
		if b.left < 0 || now < b.left {
			b.left = now
		}
		b.since = 0
	}
	b.since += n
	if n > b.left {
		return false
	}
	b.left -= n
	return true
}

// availableMemory is MemAvailable of proc_meminfo(5): free memory and what of the page cache can be given up.
func availableMemory() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read memory of node: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read memory of node: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("read memory of node: no MemAvailable")
}
