// Package retry repeats operations of block storage that the storage was too busy for. It is put around a driver once,
// by package drivers; neither drivers nor their callers repeat anything by themselves.
package retry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/interceptor"
	"berth.dev/berth/internal/backoff"
)

// Attempts and the waits between them: about six seconds together, long enough for a burst of throttling, short enough
// that whoever waits for a disk learns that there is none. Callers with more patience come back by themselves.
const (
	Attempts  = 7
	firstWait = 100 * time.Millisecond
	lastWait  = firstWait << (Attempts - 2)
)

// Around returns the driver with all its roles. Each operation is repeated as Do repeats.
func Around(driver blockdev.Attacher) blockdev.Attacher { return interceptor.Wrap(driver, Intercept) }

// Intercept repeats an operation of a driver as Do does.
func Intercept(ctx context.Context, _ string, do func(context.Context) error) error {
	return Do(ctx, do)
}

// Do calls operation until its error is not blockdev.Retryable, Attempts are used up or ctx ends, and returns its last
// error, joined with that of ctx if that was the reason to stop. The operation must be idempotent. A last error that is
// not retryable after one that was comes with blockdev.ErrMayBeDone.
//
// It is not called within an operation of a driver that is repeated already, or attempts and waits would multiply.
func Do(ctx context.Context, operation func(context.Context) error) error {
	waits := backoff.Doubling{First: firstWait, Most: lastWait}
	for attempt := 1; ; attempt++ {
		err := operation(ctx)
		switch {
		case err == nil:
			return nil
		case !blockdev.Retryable(err) && attempt > 1:
			return fmt.Errorf("%w (%w)", err, blockdev.ErrMayBeDone)
		case !blockdev.Retryable(err) || attempt == Attempts:
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
