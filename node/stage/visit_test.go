package stage

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/device"
)

// A visitor does not keep a disk from leaving, but is let go of it in peace: the disk is unmounted when the visitor has
// left.
func TestVisitorIsSentAway(t *testing.T) {
	n := newNode(t)
	n.start()
	path, id := n.disk("one", "erofs", "a", "b")
	n.stage("one", path)
	ctx, v, leave, err := n.Visit(t.Context(), id.UUID)
	require.NoError(t, err)
	require.Equal(t, id, v.Identity)
	require.Equal(t, "one", v.Name)
	number, err := device.Number(v.Device)
	require.NoError(t, err)
	require.Equal(t, number, v.DeviceNumber)
	require.Len(t, v.Index.Layers, 2)
	f, err := os.Open(filepath.Join(v.LayerDir(1), "name")) // keeps the file system busy
	require.NoError(t, err)
	require.NoError(t, ctx.Err())
	require.Equal(t, StateIdle, n.status("one").State, "a visitor is no holder")

	unstaged := make(chan error, 1)
	go func() {
		_, err := n.Unstage(t.Context(), "one", UnstageOptions{})
		unstaged <- err
	}()
	<-ctx.Done()
	_, _, _, err = n.Visit(t.Context(), id.UUID)
	require.True(t, errdefs.IsUnavailable(err), err)
	_, err = f.Stat()
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(v.LayerDir(1), "name"), "still mounted")
	require.NoError(t, f.Close())
	leave()
	leave()
	require.NoError(t, <-unstaged)
	require.Empty(t, n.left())
	_, _, _, err = n.Visit(t.Context(), id.UUID)
	require.True(t, errdefs.IsNotFound(err), err)
}

// An idle disk goes although it is being visited, and a visitor who never leaves holds up no more than that.
func TestVisitorWhoStays(t *testing.T) {
	n := newNode(t)
	n.start()
	path, id := n.disk("one", "erofs", "a")
	n.stage("one", path)
	visit, _, leave, err := n.Visit(t.Context(), id.UUID)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := n.Unstage(ctx, "one", UnstageOptions{})
		done <- err
	}()
	<-visit.Done()
	cancel()
	err = <-done
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "reads ahead")
	leave()
	soon(t, "it is tried again", func() bool { return len(n.Disks()) == 0 })
	require.Empty(t, n.left())
}

// A disk that fails sends its visitors away; who comes back later sees the one that came back.
func TestVisitorOfDiskThatFails(t *testing.T) {
	n := newNode(t)
	n.start()
	path, id := n.disk("one", "erofs", "a")
	n.stage("one", path)
	visit, _, leave, err := n.Visit(t.Context(), id.UUID)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, 0))
	require.Error(t, n.Check(t.Context(), "one"))
	<-visit.Done()
	leave()
}
