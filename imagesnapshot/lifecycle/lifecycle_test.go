package lifecycle_test

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

func TestNewRefuses(t *testing.T) {
	_, err := lifecycle.New(lifecycle.Config{Limits: imagesnapshot.DefaultLimits(), Installation: "x"})
	require.True(t, errdefs.IsInvalidArgument(err))
	_, err = lifecycle.New(lifecycle.Config{Installation: "00000000-0000-0000-0000-000000000000"})
	require.True(t, errdefs.IsInvalidArgument(err))
}
