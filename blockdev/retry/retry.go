// Package retry repeats operations of block storage that the storage was too busy for.
package retry

import (
	"context"
	"errors"
	"time"

	"berth.dev/berth/blockdev"
)

// Attempts and the waits between them: about six seconds together, long enough for a burst of throttling, short enough
// that whoever waits for a disk learns that there is none. Callers with more patience come back by themselves.
const (
	Attempts  = 7
	firstWait = 100 * time.Millisecond
)

// Do calls operation until its error is not blockdev.Retryable, Attempts are used up or ctx ends, and returns its last error,
// joined with that of ctx if that was the reason to stop. The operation must be idempotent.
func Do(ctx context.Context, operation func(context.Context) error) error {
	wait := firstWait
	for attempt := 1; ; attempt++ {
		err := operation(ctx)
		if !blockdev.Retryable(err) || attempt == Attempts {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, ctx.Err())
		case <-timer.C:
		}
		wait *= 2
	}
}
