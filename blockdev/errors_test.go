package blockdev_test

import (
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
)

func TestClasses(t *testing.T) {
	for _, tc := range []struct {
		err   error
		is    func(error) bool
		retry bool
	}{
		{blockdev.ErrNotFound, errdefs.IsNotFound, false},
		{blockdev.ErrExists, errdefs.IsAlreadyExists, false},
		{blockdev.ErrInUse, errdefs.IsFailedPrecondition, false},
		{blockdev.ErrAttachLimit, errdefs.IsResourceExhausted, false},
		{blockdev.ErrNoSpace, errdefs.IsResourceExhausted, false},
		{blockdev.ErrThrottled, errdefs.IsUnavailable, true},
		{blockdev.ErrNotReady, errdefs.IsUnavailable, true},
		{blockdev.ErrUnsupported, errdefs.IsNotImplemented, false},
		{blockdev.ErrInvalid, errdefs.IsInvalidArgument, false},
		{blockdev.ErrDenied, errdefs.IsPermissionDenied, false},
		{blockdev.ErrFailed, errdefs.IsInternal, false},
	} {
		err := fmt.Errorf("attach volume v: %w", tc.err)
		require.True(t, tc.is(err), "%v", err)
		require.Equal(t, tc.retry, blockdev.Retryable(err), "%v", err)
	}
	require.False(t, blockdev.Retryable(nil))
}
