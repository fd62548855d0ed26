// Package csi plays the roles of a block storage driver with any CSI driver (container-storage-interface/spec v1.13),
// over the unix sockets of its controller and node services, as Kubernetes does it, but without Kubernetes.
//
// What the CSI driver cannot do is asked first and honoured. Volumes are used as block devices of one node at a time,
// the access mode that every driver has. That a device is read-only is never left to the driver, some of which ignore
// it for block volumes: this package sets the kernel's flag, and checks it.
//
// CSI is silent about much that is needed later: the name of a volume, the context that comes with it, what is attached
// here. That is kept below Config.Directory, written before the driver is asked to do anything, so that every step can
// be repeated after a crash:
//
//	volumes/<hash>.json       a volume made here, by its name
//	snapshots/<hash>.json     a volume snapshot made here, by its name
//	attachments/<hash>.json   a volume attached to this node, or on its way, by its ID
//	staging/<hash>            staging target path of a volume
//	publish/<hash>/device     target path: the device appears there
package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/keylock"
	"berth.dev/berth/internal/unixsocket"
)

// Config of a CSI driver.
type Config struct {
	// Node is the path of the unix socket that serves the node service on this node.
	Node string
	// Controller is that of the controller service; empty is Node's, for drivers that serve both in one process.
	Controller string
	// Directory of our state, made if it is missing. The CSI driver makes devices appear in it, so that a driver in a
	// container must have it mounted at the same path, with mount propagation to the host. One process uses it.
	Directory string
	// Parameters of volumes that are made, and VolumeSnapshotParameters of volume snapshots, as the driver documents
	// them for a storage class and a volume snapshot class.
	Parameters, VolumeSnapshotParameters map[string]string
	// RestoreParameters are added to Parameters for a volume that is made from a volume snapshot. Some drivers refuse
	// what only makes sense there for an empty volume, such as an initialisation rate.
	RestoreParameters map[string]string
	// Topology says where volumes are to be made; empty is where the driver says that this node is.
	Topology map[string]string
	Secrets  Secrets
	// Timeout of one request to the driver; zero is DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout of one request: attaching takes up to about 20 seconds in most clouds, and a driver that takes longer
// is asked again.
const DefaultTimeout = 2 * time.Minute

// Driver speaks to a CSI driver. It is safe for concurrent use; of one volume, one operation runs at a time.
//
// ListVolumes lists all volumes that the CSI driver lists, or those made by this Driver if it lists none; only the
// latter have names.
type Driver struct {
	blockdev.Attacher
	blockdev.Provisioner
	blockdev.VolumeSnapshotter
	c *connection
}

// connection is what all parts of a Driver need: the way to the CSI driver, and what it can do.
type connection struct {
	config           Config
	controller, node *service
	// keys of the volumes, by ID and by name, and of the snapshots that an operation is about now.
	keys keylock.Set

	// mu guards plugin, which is nil until the CSI driver was asked what it can do.
	mu     sync.Mutex
	plugin *plugin
}

var (
	_ blockdev.Attacher          = (*Driver)(nil)
	_ blockdev.Provisioner       = (*Driver)(nil)
	_ blockdev.VolumeSnapshotter = (*Driver)(nil)
)

// Open makes the directory and does nothing else: the CSI driver may come later, and leave for a while.
func Open(config Config) (*Driver, error) {
	d, err := open(config)
	if err != nil {
		return nil, fmt.Errorf("open csi driver: %w", err)
	}
	return d, nil
}

func open(config Config) (*Driver, error) {
	if config.Controller == "" {
		config.Controller = config.Node
	}
	if config.Timeout == 0 {
		config.Timeout = DefaultTimeout
	}
	for _, name := range []string{volumesDir, snapshotsDir, attachmentsDir, stagingDir, publishDir} {
		// 0700: the devices are those of disks with setuid files of images.
		if err := os.MkdirAll(filepath.Join(config.Directory, name), 0o700); err != nil {
			return nil, err
		}
	}
	node, err := dial(config.Node, config.Timeout)
	if err != nil {
		return nil, err
	}
	controller, err := dial(config.Controller, config.Timeout)
	if err != nil {
		return nil, errors.Join(err, node.conn.Close())
	}
	c := &connection{config: config, controller: controller, node: node}
	attachments := store[attachment]{filepath.Join(config.Directory, attachmentsDir)}
	find := &finder{c, store[volumeRecord]{filepath.Join(config.Directory, volumesDir)}}
	snaps := &volumeSnapshotter{c, store[volumeSnapshotRecord]{filepath.Join(config.Directory, snapshotsDir)}}
	return &Driver{
		Attacher:          &attacher{c: c, find: find, attachments: attachments},
		Provisioner:       &provisioner{c, find, snaps, attachments},
		VolumeSnapshotter: snaps,
		c:                 c,
	}, nil
}

// Directories of the state.
const (
	volumesDir     = "volumes"
	snapshotsDir   = "snapshots"
	attachmentsDir = "attachments"
	stagingDir     = "staging"
	publishDir     = "publish"
)

// Close ends the connections. What is attached stays attached.
func (d *Driver) Close() error {
	return errors.Join(d.c.controller.conn.Close(), d.c.node.conn.Close())
}

// Properties returns those of the CSI driver once the first operation has asked for them. Before that, it is taken to
// have snapshots and no limit.
func (d *attacher) Properties() blockdev.Properties {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	// Read-only is our own doing.
	p := blockdev.Properties{ReadOnlyAttach: true, VolumeSnapshots: true}
	if d.c.plugin != nil {
		p.MaxAttachments = d.c.plugin.maxVolumes
		p.VolumeSnapshots = d.c.plugin.snapshots
	}
	return p
}

func (d *connection) connect(ctx context.Context) (*plugin, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	known := d.plugin
	d.mu.Unlock()
	if known != nil {
		return known, nil
	}
	p, err := d.ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the csi driver what it can do: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plugin = p
	return p, nil
}

// forget what the CSI driver can do, because it went away: it may come back as another version.
func (d *connection) forget(err error) {
	if blockdev.Retryable(err) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.plugin = nil
	}
}

// service is a connection to one of the CSI driver's sockets.
type service struct {
	conn *grpc.ClientConn
	// path of the socket.
	path    string
	timeout time.Duration
}

// maxMessage bounds an answer; the longest are pages of lists, whose length we choose.
const maxMessage = 4 << 20

func dial(path string, timeout time.Duration) (*service, error) {
	path = strings.TrimPrefix(path, "unix://")
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("socket %q: want an absolute path: %w", path, blockdev.ErrInvalid)
	}
	if err := unixsocket.CheckPath(path); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+path, dialOptions()...)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return &service{conn, path, timeout}, nil
}
