package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev"
)

func dialOptions() []grpc.DialOption {
	reconnect := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: time.Second}
	// gRPC's own two minutes would go on long after the driver is back.
	reconnect.Backoff.BaseDelay, reconnect.Backoff.MaxDelay = 100*time.Millisecond, 2*time.Second
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the socket's mode says who may connect
		grpc.WithConnectParams(reconnect),
		grpc.WithNoProxy(), // a proxy of the environment is for what is elsewhere
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// Whole operations are repeated, by package retry.
		grpc.WithDisableRetry(),
	}
}

// purpose of a request decides what some codes mean.
type purpose int

const (
	asking purpose = iota
	// making a volume or volume snapshot.
	making
	// attaching a volume to the node.
	attaching
)

// method of a generated client.
type method[Req, Resp any] func(context.Context, Req, ...grpc.CallOption) (Resp, error)

// call makes a request. Aborted (the driver is busy with the same thing), Unavailable (it is not there) and a request
// that was not answered in time, which may have been done, are all ErrThrottled, and for the caller to repeat.
func call[Req, Resp any](ctx context.Context, s *service, why purpose, name string, do method[Req, Resp], req Req) (Resp, error) {
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, err := do(bounded, req)
	if err == nil {
		return resp, nil
	}
	if ctxErr := ctx.Err(); ctxErr != nil {
		return resp, fmt.Errorf("%s: %w", name, ctxErr)
	}
	if status.Code(err) == codes.Unavailable && unheard(ctx, s.path) {
		return resp, fmt.Errorf("%s: %w", name, &deadDriver{s.path})
	}
	return resp, fmt.Errorf("%s: %s: %w", name, describe(err), classOf(status.Code(err), why))
}

// deadDriver is the error of a request to a driver that does not run. It is ErrThrottled, for the driver may only be
// restarted just now, but it does not say that the storage is busy.
type deadDriver struct{ socket string }

// Error says what to do.
func (e *deadDriver) Error() string {
	return "nobody listens on " + e.socket + ": start the CSI driver, or correct the path of its socket"
}

// Unwrap gives the class.
func (e *deadDriver) Unwrap() error { return blockdev.ErrThrottled }

// unheard says whether nobody listens on the socket. It asks the kernel, for gRPC says so in words only.
func unheard(ctx context.Context, socket string) bool {
	conn, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, "unix", socket)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
	}
	_ = conn.Close() // nothing was sent
	return false
}

// probeTimeout is far more than connecting to a local socket takes.
const probeTimeout = time.Second

// classOf is the one table of gRPC codes, as the spec uses them, and our classes.
func classOf(code codes.Code, why purpose) error {
	//nolint:exhaustive // OK is no error
	switch code {
	case codes.InvalidArgument, codes.OutOfRange:
		return blockdev.ErrInvalid
	case codes.NotFound:
		return blockdev.ErrNotFound
	case codes.AlreadyExists:
		return blockdev.ErrExists
	case codes.FailedPrecondition:
		return blockdev.ErrInUse
	case codes.ResourceExhausted:
		if why == attaching {
			return blockdev.ErrAttachLimit
		}
		if why == making {
			return blockdev.ErrNoSpace
		}
		return blockdev.ErrThrottled // nothing is used up by a question
	case codes.Aborted, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return blockdev.ErrThrottled
	case codes.Unimplemented:
		return blockdev.ErrUnsupported
	case codes.PermissionDenied, codes.Unauthenticated:
		return blockdev.ErrDenied
	}
	return blockdev.ErrFailed // Unknown, Internal, DataLoss and what is no code at all
}

// maxText bounds what is taken over of a driver's explanation.
const maxText = 1 << 10

// describe is the driver's explanation on one line.
func describe(err error) string {
	s := status.Convert(err)
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s.Message(), "?"))
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return fmt.Sprintf("%s (%s)", text, s.Code())
}

const (
	pageEntries = 1000
	maxPages    = 1000
)

// pages asks for all pages of a list: ask gets the token of a page and returns that of the next.
func pages(ask func(token string) (next string, err error)) error {
	token := ""
	for range maxPages {
		next, err := ask(token)
		if err != nil || next == "" {
			return err
		}
		if next == token {
			break
		}
		token = next
	}
	return fmt.Errorf("the list does not end: %w", blockdev.ErrFailed)
}
