// Package overlayproxy serves containerd's own overlay snapshotter as a proxy plugin: what berth is compared with, by
// the same way to containerd.
package overlayproxy

import (
	"context"
	"errors"
	"fmt"
	"net"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"
)

// Server of the overlay snapshotter; Close it after use.
type Server struct {
	server *grpc.Server
	close  func() error
	done   chan error
}

// Start serves an overlay snapshotter with its files below root on a new unix socket.
func Start(ctx context.Context, root, socket string) (*Server, error) {
	sn, err := overlay.NewSnapshotter(root, overlay.AsynchronousRemove, overlay.WithRemapIDs)
	if err != nil {
		return nil, fmt.Errorf("open overlay snapshotter: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for overlay proxy: %w", err), sn.Close())
	}
	s := &Server{server: grpc.NewServer(), close: sn.Close, done: make(chan error, 1)}
	snapshotsapi.RegisterSnapshotsServer(s.server, snapshotservice.FromSnapshotter(sn))
	go func() { s.done <- s.server.Serve(listener) }()
	return s, nil
}

// Close ends the service and closes the snapshotter; its files stay.
func (s *Server) Close() error {
	s.server.Stop()
	return errors.Join(<-s.done, s.close())
}
