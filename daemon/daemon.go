// Package daemon joins what runs on a node into one server for containerd: drivers, stage, image snapshots, disks for
// pulls, reading ahead, the snapshotter, imports, and the services of the API. It is what berthd is made of; a program
// with drivers of its own, or a test, uses it without berthd's flags, signals and lock.
//
// Its parts have one form, and stand in the order in which they are opened; they are closed the other way round.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/drivers"
	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/imagesnapshot/assembly"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/internal/version"
	"berth.dev/berth/matcher/dialect"
	"berth.dev/berth/node/diskfailures"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/readahead"
	"berth.dev/berth/readahead/firststart"
	"berth.dev/berth/snapshotter"
)

// Config is berthd's configuration.
type Config = config.Config

// Options of a Daemon.
type Options struct {
	Config Config
	// Root is Config.Root without symbolic links, which mounts cannot have in their paths. It exists, and nobody else
	// uses it.
	Root string
	// Drivers beside those that the configuration names. They belong to the daemon.
	Drivers map[string]blockdev.Attacher
	// Reloads are later configurations, of which the daemon takes over what it can while it serves; nil for none.
	Reloads <-chan Config
}

// Daemon is an open node. It is safe for concurrent use.
type Daemon struct {
	node   *node
	opened []part
}

// node is what the parts make and share. Nothing of it changes once all are open.
type node struct {
	// config has the root without symbolic links; loaded is as it came.
	config, loaded Config
	own            map[string]blockdev.Attacher
	reloads        <-chan Config
	// started is before anything was mounted.
	started time.Time

	registry *prometheus.Registry
	metrics  *metrics.Metrics
	ledger   *events.Ledger
	failures *diskfailures.Reporter

	drivers *drivers.Set
	stage   *stage.Stager
	disks   *disks.Keeper
	// kept are the image snapshots of this node, nil if it keeps none; uses gets what is noted of them, and
	// imageSnapshots is their service, nil without any.
	kept           *assembly.ImageSnapshots
	uses           uses
	imageSnapshots *imagesnapshotservice.Service
	// annotations says how pods are read.
	annotations dialect.Settings
	catalogs    []catalog.Lister
	// synced has a value for each catalog that has been read.
	synced  chan struct{}
	chooser *ondemand.Chooser
	// reader, which reads ahead, and recorder are nil if the configuration does not want them.
	reader      *readahead.Reader
	recorder    *firststart.Recorder
	snapshotter *snapshotter.Snapshotter
	pulls       *pulls
	importer    *imageimport.Importer
	// containerd's services, for the importer and for making layers anew.
	containerd *grpc.ClientConn
	client     *client.Client
}

// Open has disks and snapshots ready, in the order that makes them agree after a crash or a reboot. Mounts and
// containers of an earlier run go on.
func Open(ctx context.Context, o Options) (*Daemon, error) {
	n := &node{
		config: o.Config, loaded: o.Config, own: o.Drivers, reloads: o.Reloads, started: time.Now(),
		registry: prometheus.NewRegistry(), ledger: events.NewLedger(), uses: noUses{},
	}
	n.config.Root = o.Root
	n.metrics = metrics.New(n.registry, version.String())
	n.failures = diskfailures.New(n.ledger)
	d := &Daemon{node: n}
	for _, p := range parts(&n.config) {
		if err := p.open(ctx, n); err != nil {
			return nil, errors.Join(fmt.Errorf("open %s: %w", p.name, err), d.Close())
		}
		d.opened = append(d.opened, p)
	}
	return d, nil
}

// Close closes what was opened, the last first. Disks stay mounted.
func (d *Daemon) Close() error {
	var errs []error
	for len(d.opened) > 0 {
		last := d.opened[len(d.opened)-1]
		d.opened = d.opened[:len(d.opened)-1]
		if last.close != nil {
			errs = append(errs, last.close(d.node))
		}
	}
	return errors.Join(errs...)
}

// Alive returns when the locks that every request needs can be had, which is what a watchdog relies on.
func (d *Daemon) Alive(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		d.node.stage.Disks()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reload takes over what it can of later configurations, until ctx ends.
func reload(ctx context.Context, n *node) {
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-n.reloads:
			n.importer.Want(c.ImportsFrom)
			n.disks.Configure(ctx, diskSpecs(&c))
			n.drivers.Found().Rescan()
			log.G(ctx).WithField("restart_needed", n.loaded.NeedsRestart(&c)).
				Info("configuration is read again: log settings and added disks take effect")
		}
	}
}
