package builder

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// retryPolicy repeats what failed for a reason that may pass.
type retryPolicy struct {
	attempts int
	// busy is the number of attempts with a registry that answers that it is too busy, or its proxy that it is away.
	busy int
	// first is the wait after the first failure; it doubles each time, up to longestWait.
	first time.Duration
	// asked, if not nil, holds the time until which registries want no more requests.
	asked *askedWait
}

const (
	longestWait = 30 * time.Second
	// longestAsked is the longest wait granted to a registry.
	longestAsked = 5 * time.Minute
)

// defaultRetryPolicy gives up after about eight seconds, and with a busy registry after two minutes at least.
func defaultRetryPolicy() retryPolicy {
	return retryPolicy{attempts: 5, busy: 10, first: 500 * time.Millisecond, asked: new(askedWait)}
}

// do calls f until it succeeds, fails for good, or has failed too often.
func (p retryPolicy) do(ctx context.Context, f func() error) error {
	for n := 1; ; n++ {
		err := f()
		if err == nil || !p.again(err, n) {
			return err
		}
		if waitErr := p.wait(ctx, n); waitErr != nil {
			return errors.Join(err, waitErr)
		}
	}
}

// again says whether there is reason to try once more after the n-th failure in a row.
func (p retryPolicy) again(err error, n int) bool {
	most := p.attempts
	if busy(err) {
		most = max(most, p.busy)
	}
	return transient(err) && n < most
}

// busy says that a registry is too busy, or that its proxy does not reach it.
func busy(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if !errors.As(err, &status) {
		return false
	}
	switch status.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// wait lasts as long as it is right after the n-th failure in a row.
func (p retryPolicy) wait(ctx context.Context, n int) error {
	wait := p.first
	for range n - 1 {
		wait = min(2*wait, longestWait)
	}
	if p.asked != nil {
		wait = max(wait, p.asked.left())
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// askedWait holds the time until which registries want no more requests.
type askedWait struct {
	mu    sync.Mutex
	until time.Time
}

func (a *askedWait) left() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Until(a.until)
}

// hear notes what a response asks for (RFC 9110, section 10.2.3: seconds or a date).
func (a *askedWait) hear(r *http.Response) {
	if r.StatusCode != http.StatusTooManyRequests && r.StatusCode != http.StatusServiceUnavailable {
		return
	}
	given := r.Header.Get("Retry-After")
	until, err := http.ParseTime(given)
	if err != nil {
		seconds, err := strconv.ParseUint(given, 10, 32)
		if err != nil {
			return
		}
		until = time.Now().Add(time.Duration(seconds) * time.Second) //nolint:gosec // 32 bits
	}
	if latest := time.Now().Add(longestAsked); until.After(latest) {
		until = latest
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if until.After(a.until) {
		a.until = until
	}
}

// listener is a transport that hears what responses ask for.
type listener struct {
	http.RoundTripper
	asked *askedWait
}

// RoundTrip implements http.RoundTripper.
func (l listener) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(req)
	if err == nil {
		l.asked.hear(resp)
	}
	return resp, err
}
