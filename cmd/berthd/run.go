package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"berth.dev/berth/blockdev/drivers"
	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/control/nodeservice"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/internal/unixsocket"
	"berth.dev/berth/internal/version"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/readahead"
	"berth.dev/berth/readahead/firststart"
	"berth.dev/berth/snapshotter"
)

// drainTimeout bounds how long a stop waits for requests that are being answered; a Prepare takes milliseconds, only
// attaching a disk takes longer, and that goes on after the next start.
const drainTimeout = 10 * time.Second

// node is what a running daemon consists of.
type node struct {
	drivers  *drivers.Set
	stage    *stage.Stager
	catalogs []catalog.Lister
	chooser  *ondemand.Chooser
	// reader is nil if nothing is read ahead.
	reader *readahead.Reader
	// recorder is nil if first starts are not recorded.
	recorder *firststart.Recorder
	snaps    *snapshotter.Snapshotter
	ledger   *events.Ledger
	disks    *disks.Keeper
	importer *imageimport.Importer
	pulls    *pullWatcher
	// containerd's services, for the importer.
	containerd *grpc.ClientConn
	registry   *prometheus.Registry
	metrics    *metrics.Metrics
	failures   *diskFailures
	// snapshots are the image snapshots that this node keeps, nil if it keeps none; uses gets what is noted of them.
	snapshots *imageSnapshots
	uses      uses
}

// run serves until ctx ends. It leaves mounts and containers alone.
func run(ctx context.Context, c config.Config, load func() (config.Config, error)) (err error) {
	started := time.Now()
	c.Root, err = makeRoot(c.Root)
	if err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(c.Root, "berthd.lock"), "root")
	if err != nil {
		return err
	}
	defer joinClose(&err, lock)
	// Clients that come too early wait in the socket's queue instead of failing. Nothing else runs yet, see
	// unixsocket.Listen.
	listener, err := unixsocket.Listen(ctx, c.Socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreClosed(listener.Close())) }()

	n := &node{ledger: events.NewLedger(), registry: prometheus.NewRegistry()}
	n.metrics = metrics.New(n.registry, version.String())
	defer joinClose(&err, n)
	if err := n.open(ctx, c); err != nil {
		if ctx.Err() != nil {
			log.G(ctx).WithError(err).Info("stopped before serving")
			return nil
		}
		return err
	}

	node := nodeservice.Config{
		Node:  nodeservice.Node{Version: version.String(), PID: os.Getpid(), Started: started, Root: c.Root},
		Disks: n.disks, Layers: n.stage, Ledger: n.ledger, Images: n.importer, Choices: n.chooser,
	}
	if n.reader != nil {
		node.ReadAhead = n.reader
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(n.metrics.UnaryInterceptor()))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(n.snaps))
	nodeservice.Register(server, nodeservice.New(node))
	if n.snapshots != nil {
		imagesnapshotservice.Register(server, n.snapshots.service)
	}
	alive := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, alive)
	reflection.RegisterV1(server) // so that grpcurl and its like need no files of ours

	return n.serve(ctx, c, load, server, alive, listener)
}

// open has disks and snapshots ready, in the order that makes them agree after a crash or a reboot.
func (n *node) open(ctx context.Context, c config.Config) (err error) {
	if n.drivers, err = openDrivers(c, metrics.RegisterDrivers(n.registry)); err != nil {
		return err
	}
	started := time.Now() // no disk has been mounted by this process
	n.failures = newDiskFailures(n.ledger)
	watch := observer{metrics: n.metrics, ledger: n.ledger, failures: n.failures}
	n.stage, err = stage.Open(stage.Config{Root: c.Root, Drivers: n.drivers.Attachers(), IdleTimeout: c.Stage.IdleTimeout.Std(),
		AttachWait: c.Stage.AttachWait.Std(), MinRate: c.Stage.MinRate, Observer: watch})
	if err != nil {
		return err
	}
	n.disks = disks.NewKeeper(n.stage, n.ledger)
	metrics.RegisterDisks(n.registry, func() (metrics.DiskTotals, error) { return diskTotals(n.stage.Disks()), nil })
	if err := n.restore(ctx, c.Stage.RestoreTimeout.Std()); err != nil {
		return err
	}
	n.uses = noUses{}
	if n.snapshots, err = openImageSnapshots(ctx, c, n.drivers.All(), n.registry); err == nil {
		n.uses = n.snapshots
	} else {
		// No container may fail to start because of them.
		log.G(ctx).WithError(err).Error("serving without image snapshots of this node's own, repair their store and restart")
		n.snapshots = nil
	}
	if err := n.openChooser(ctx, c); err != nil {
		return err
	}
	if err := n.openReader(ctx, c); err != nil {
		return err
	}
	if err := n.openRecorder(ctx, c, started); err != nil {
		return err
	}
	if n.snapshots != nil {
		n.snapshots.serveWith(n.chooser)
	}
	protocol, err := snapshotter.ParseProtocol(string(c.Snapshotter.Protocol))
	if err != nil {
		return err
	}
	n.pulls = &pullWatcher{Observer: startWatcher{useRecorder{watch, n.chooser, n.uses}, n.reader, n.recorder}}
	n.snaps, err = snapshotter.Open(ctx, snapshotter.Config{
		Root: c.Root, Source: chosenLayers{layerSource{n.stage}, n.chooser}, Protocol: protocol,
		Observer: n.pulls,
	})
	if err != nil {
		return err
	}
	if err := n.openImporter(c); err != nil {
		return err
	}
	missing, err := reconcile(ctx, n.snaps, n.stage)
	for _, a := range missing {
		log.G(ctx).WithFields(log.Fields{"disk": a.DiskUUID, "layer": a.LayerNumber, "chain_id": a.ChainID}).
			Error("a snapshot needs a layer of a disk that is not known here: attach that disk or another one with the layer, or remove the image")
	}
	return err
}

// restore waits for the disks of the run before, but not for ever: the rest comes back in the background.
func (n *node) restore(ctx context.Context, timeout time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := n.stage.Restore(bounded)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		log.G(ctx).WithError(err).Warn("serving while disks are still being restored")
		return nil
	}
	return err
}

// serve answers until ctx ends or the server fails, then drains.
func (n *node) serve(ctx context.Context, c config.Config, load func() (config.Config, error), server *grpc.Server, alive *health.Server, l net.Listener) error {
	work, stopWork := context.WithCancel(ctx)
	defer stopWork()
	unfollow := n.followCatalogs(work)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	background := n.startWork(work, c, load)
	notify(ctx, daemon.SdNotifyReady)
	log.G(ctx).WithFields(log.Fields{"socket": c.Socket, "root": c.Root, "version": version.String()}).Info("berthd serves")

	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("serve on %s: %w", c.Socket, err)
	case <-ctx.Done():
	}
	stopping := context.WithoutCancel(ctx)
	notify(stopping, daemon.SdNotifyStopping)
	log.G(stopping).Info("berthd stops, containers go on")
	alive.Shutdown()
	n.ledger.Close()
	if n.snapshots != nil {
		n.snapshots.service.Close()
	}
	drain(stopping, server)
	stopWork()
	background()
	unfollow()
	return err
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

// Close closes what was opened, the last first; disks stay mounted.
func (n *node) Close() error {
	var errs []error
	if n.containerd != nil {
		errs = append(errs, n.containerd.Close())
	}
	if n.recorder != nil {
		errs = append(errs, n.recorder.Close())
	}
	if n.reader != nil {
		errs = append(errs, n.reader.Close())
	}
	if n.snapshots != nil {
		errs = append(errs, n.snapshots.Close())
	}
	if n.snaps != nil {
		errs = append(errs, n.snaps.Close())
	}
	if n.chooser != nil {
		errs = append(errs, n.chooser.Close())
	}
	if n.stage != nil {
		errs = append(errs, n.stage.Close())
	}
	if n.drivers != nil {
		errs = append(errs, n.drivers.Close())
	}
	return errors.Join(errs...)
}

// makeRoot returns the root without symbolic links, which mounts cannot have in their paths.
func makeRoot(path string) (string, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fmt.Errorf("make root: %w", err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("find root: %w", err)
	}
	return real, nil
}

func joinClose(err *error, c io.Closer) { *err = errors.Join(*err, c.Close()) }

// ignoreClosed: the server closes its listener too.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
