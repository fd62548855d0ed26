package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/config"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/stage"
)

// startWork starts what goes on beside the server; the returned function waits until all of it has ended, which it does
// after ctx.
func (n *node) startWork(ctx context.Context, c config.Config, load func() (config.Config, error)) (wait func()) {
	var wg sync.WaitGroup
	n.disks.Configure(ctx, diskSpecs(c))
	wg.Go(func() { n.serveMetrics(ctx, c.Metrics.Address) })
	wg.Go(func() { disks.KeepChecking(ctx, n.stage) })
	if c.Discover.Enabled {
		discovery := disks.NewDiscovery(n.disks)
		wg.Go(func() { discovery.Run(ctx) })
		wg.Go(func() { discover(ctx, n.drivers.Found(), discovery) })
	}
	wg.Go(func() { n.failures.run(ctx, n.chooser.ImageSnapshot, n.uses.NoteDiskFailure) })
	wg.Go(func() { n.importer.Run(ctx) })
	wg.Go(func() { feedWatchdog(ctx, n.answersItself) })
	if n.snapshots != nil {
		wg.Go(func() { n.snapshots.Run(ctx) })
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	wg.Go(func() {
		defer signal.Stop(hangups)
		n.reloadOn(ctx, hangups, c, load)
	})
	return func() {
		wg.Wait()
		n.disks.Wait()
	}
}

func diskSpecs(c config.Config) []stage.Spec {
	var specs []stage.Spec
	for _, d := range c.Disks {
		specs = append(specs, stage.Spec{Name: d.Name, Driver: d.DriverName(), VolumeID: d.VolumeID(),
			VolumeSnapshotID: d.Snapshot, Keep: d.KeepAttached(), Expect: layerdisk.Identity{IndexDigest: d.Expect}})
	}
	return specs
}

// answersItself is what the watchdog relies on: the locks that every request needs can be had.
func (n *node) answersItself(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		n.stage.Disks()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// serveMetrics serves until ctx ends. An address that cannot be had is logged only: no container may fail to start for
// want of metrics.
func (n *node) serveMetrics(ctx context.Context, address string) {
	if address == "" {
		return
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		log.G(ctx).WithField("address", address).WithError(err).Error("no metrics: cannot listen")
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: 10 * time.Second, ErrorHandling: promhttp.ContinueOnError, // one part that fails hides no other
	}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 1 << 14}
	stop := context.AfterFunc(ctx, func() {
		if err := server.Close(); err != nil {
			log.G(ctx).WithError(err).Debug("metrics end")
		}
	})
	defer stop()
	log.G(ctx).WithField("address", l.Addr().String()).Info("metrics are served")
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		log.G(ctx).WithError(err).Error("metrics are no longer served")
	}
}

// reloadOn reads the configuration again at each hangup.
func (n *node) reloadOn(ctx context.Context, hangups <-chan os.Signal, old config.Config, load func() (config.Config, error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		c, err := load()
		if err == nil {
			err = setLogging(c.Log)
		}
		if err != nil {
			log.G(ctx).WithError(err).Error("configuration is not read again, the old one stays")
			continue
		}
		n.importer.Want(c.ImportsFrom)
		n.disks.Configure(ctx, diskSpecs(c))
		n.drivers.Found().Rescan()
		log.G(ctx).WithField("restart_needed", old.NeedsRestart(&c)).Info("configuration is read again: log settings and added disks take effect")
	}
}
