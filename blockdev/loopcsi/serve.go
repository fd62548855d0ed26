package loopcsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
)

// stopTimeout bounds how long a stop waits for requests: copying a volume's data can take long, and a copy that is cut
// off leaves nothing and is begun again by the client.
const stopTimeout = 10 * time.Second

// Serve answers on the listener until ctx ends, then lets requests finish, up to a bound, and closes the listener. What
// is attached stays attached.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer()
	s.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(stopped)
	}()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		server.Stop()
		<-stopped
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}
