package lifecycle_test

import (
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

func TestMain(m *testing.M) {
	// Thousands of image snapshots come and go here; what is logged about them helps nobody.
	if err := log.SetLevel("panic"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestNewRefuses(t *testing.T) {
	_, err := lifecycle.New(lifecycle.Config{Limits: imagesnapshottest.Limits(), Installation: "x"})
	require.True(t, errdefs.IsInvalidArgument(err))
	_, err = lifecycle.New(lifecycle.Config{Installation: "00000000-0000-0000-0000-000000000000"})
	require.True(t, errdefs.IsInvalidArgument(err))
}
