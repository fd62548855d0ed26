package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/control/nodeservice"
	"berth.dev/berth/internal/version"
	"berth.dev/berth/node/lost"
)

// drainTimeout bounds how long a stop waits for requests that are being answered; a Prepare takes milliseconds, only
// attaching a disk takes longer, and that goes on after the next start.
const drainTimeout = 10 * time.Second

// Watcher is told of the two moments that others wait for. It returns at once.
type Watcher interface {
	// Serving says that requests are answered from now on.
	Serving(ctx context.Context)
	// Stopping says that there will be no more soon.
	Stopping(ctx context.Context)
}

// Serve answers on a listener, which it closes, until ctx ends or the listener fails. Then it lets requests finish, up
// to a bound, and returns when nothing of the daemon works any more. It is called once.
func (d *Daemon) Serve(ctx context.Context, l net.Listener, w Watcher) error {
	server, alive := d.server()
	work, stopWork := context.WithCancel(ctx)
	defer stopWork()
	var running sync.WaitGroup
	d.start(work, &running, func(p part) bool { return p.settle != nil })
	d.settle(work)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	d.start(work, &running, func(p part) bool { return p.settle == nil })
	w.Serving(ctx)

	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stopping := context.WithoutCancel(ctx)
	w.Stopping(stopping)
	alive.Shutdown()
	// Those who watch end first, or requests would never be done.
	d.node.ledger.Close()
	if d.node.imageSnapshots != nil {
		d.node.imageSnapshots.Close()
	}
	drain(stopping, server)
	stopWork()
	running.Wait()
	return err
}

// server has all services.
func (d *Daemon) server() (*grpc.Server, *health.Server) {
	n := d.node
	c := nodeservice.Config{
		Node:  nodeservice.Node{Version: version.String(), PID: os.Getpid(), Started: n.started, Root: n.config.Root},
		Disks: n.disks, Layers: n.stage, Ledger: n.ledger, Images: n.importer, Choices: n.chooser,
		Uses: usesOf(n.snapshotter), Lost: lost.New(lostLayers(n), n.client, n.config.Import.Snapshotter),
	}
	if n.reader != nil {
		c.ReadAhead = n.reader
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(n.metrics.UnaryInterceptor()))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(n.snapshotter))
	nodeservice.Register(server, nodeservice.New(c))
	if n.imageSnapshots != nil {
		imagesnapshotservice.Register(server, n.imageSnapshots)
	}
	alive := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, alive)
	reflection.RegisterV1(server) // so that grpcurl and its like need no files of ours
	return server, alive
}

// drain lets requests finish, up to a bound.
func drain(ctx context.Context, server *grpc.Server) {
	done := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(done)
	}()
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		log.G(ctx).WithField("timeout", drainTimeout).Warn("requests are cut off")
		server.Stop()
		<-done
	}
}
