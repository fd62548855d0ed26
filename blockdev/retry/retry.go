// Package retry repeats operations of block storage that the storage was too busy for.
package retry

import (
	"context"
	"errors"
	"time"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/internal/backoff"
)

// Attempts and the waits between them: about six seconds together, long enough for a burst of throttling, short enough
// that whoever waits for a disk learns that there is none. Callers with more patience come back by themselves.
const (
	Attempts  = 7
	firstWait = 100 * time.Millisecond
	lastWait  = firstWait << (Attempts - 2)
)

// repeated marks the context of an operation that Do repeats.
type repeated struct{}

// Do calls operation until its error is not blockdev.Retryable, Attempts are used up or ctx ends, and returns its last
// error, joined with that of ctx if that was the reason to stop. The operation must be idempotent.
//
// Within an operation that is repeated already, it does the inner one once: else attempts and waits of both would
// multiply, and somebody who waits for a storage that is not there would learn it after a minute.
func Do(ctx context.Context, operation func(context.Context) error) error {
	if ctx.Value(repeated{}) != nil {
		return operation(ctx)
	}
	ctx = context.WithValue(ctx, repeated{}, true)
	waits := backoff.Doubling{First: firstWait, Most: lastWait}
	for attempt := 1; ; attempt++ {
		err := operation(ctx)
		if !blockdev.Retryable(err) || attempt == Attempts {
			return err
		}
		timer := time.NewTimer(waits.After(attempt - 1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, ctx.Err())
		case <-timer.C:
		}
	}
}
