package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/internal/config"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// TestDamagedStore: whatever happened to the image snapshots, the node starts containers.
func TestDamagedStore(t *testing.T) {
	p := newProcess(t, "")
	store := filepath.Join(p.root(), "imagesnapshots.db")
	require.NoError(t, os.MkdirAll(p.root(), 0o700))
	require.NoError(t, os.WriteFile(store, []byte("no database at all"), 0o600))
	p.start()
	p.healthy()
	_, err := imagesnapshotv1.NewImageSnapshotServiceClient(p.dial()).ListImageSnapshots(t.Context(), &imagesnapshotv1.ListImageSnapshotsRequest{})
	require.Equal(t, codes.Unimplemented, status.Code(err))
	p.stop()
	left, err := os.ReadFile(store)
	require.NoError(t, err)
	require.Equal(t, "no database at all", string(left))
}

// TestShippedLimits is, C-39 and Q10: what the shipped configuration allows, and what tests take for it.
func TestShippedLimits(t *testing.T) {
	got := limitsOf(config.Default())
	require.NoError(t, got.Check())
	require.Equal(t, imagesnapshottest.Limits(), got)
	require.Equal(t, 50, got.MaxPerOwner, "A-3")
	require.Equal(t, []int{20, 400, 20}, []int{got.MinSizeGiB, got.MaxSizeGiB, got.DefaultSizeGiB}, "A-6")
	require.Equal(t, 1440, got.DefaultTimeoutMinutes, "C-39")
	require.Equal(t, 10, got.MaxImages, "Q10")
}
