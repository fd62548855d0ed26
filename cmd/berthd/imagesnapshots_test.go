package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
