// Package wait waits for conditions of processes and files outside of the test's control, always with a deadline, and
// says what it waited for.
package wait

import (
	"context"
	"fmt"
	"time"
)

// First and longest pause between two looks at a condition.
const (
	firstPause = 5 * time.Millisecond
	maxPause   = 200 * time.Millisecond
)

// Until looks at the condition until it is met (nil), timeout has passed or ctx ends. The error then names what was
// waited for and has the condition's last answer.
func Until(ctx context.Context, timeout time.Duration, what string, met func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pause := firstPause
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		err := met(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s (%v): %w", what, timeout, err)
		case <-timer.C:
		}
		pause = min(2*pause, maxPause)
		timer.Reset(pause)
	}
}
