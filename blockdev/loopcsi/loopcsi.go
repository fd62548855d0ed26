// Package loopcsi serves the embedded loop driver as a CSI driver (container-storage-interface/spec v1.13), for block
// volumes on one node. It is what berth's CSI client is tested against, and makes the volumes of a machine without a
// cloud usable by any container orchestrator.
//
// A machine can play several nodes, each with its own ID and socket, so that what happens between nodes can be tried on
// one.
//
// A volume is attached, as a loop device, by ControllerPublishVolume; NodePublishVolume makes that device appear at the
// target. NodeStageVolume and NodePublishVolume attach it too if it is not, as after a reboot. Volumes with a file
// system are refused, and so are volume IDs that are paths, which the loop driver itself would attach.
package loopcsi

import (
	"fmt"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/loopdev"
)

// Name of the CSI driver, and TopologyKey of its volumes, which exist on one node.
const (
	Name        = "loop.csi.berth.dev"
	TopologyKey = "topology.loop.csi.berth.dev/node"
)

// Feature is a group of RPCs that a CSI driver may lack.
type Feature string

// Features that can be left out, so that clients can be tested against drivers that lack them.
const (
	// Publish is ControllerPublishVolume and its reverse: without it volumes are attached on the node.
	Publish Feature = "publish"
	// Stage is NodeStageVolume and its reverse.
	Stage Feature = "stage"
	// ReadOnly is the obedience to the readonly fields of requests.
	ReadOnly Feature = "readonly"
	// Snapshots is all about volume snapshots.
	Snapshots Feature = "snapshots"
	// List is ListVolumes and ListSnapshots.
	List Feature = "list"
	// Get is ControllerGetVolume and GetSnapshot.
	Get Feature = "get"
)

// Features lists all there are.
func Features() []Feature { return []Feature{Publish, Stage, ReadOnly, Snapshots, List, Get} }

// Options of a Server.
type Options struct {
	// NodeID is what the driver calls this node.
	NodeID string
	// Holders is a file that says which node has which volume, for a machine that plays several; empty keeps that in
	// memory.
	Holders string
	// Version is what clients are told as the driver's version.
	Version string
	// MaxVolumes that can be attached to a node at once; 0 is no limit.
	MaxVolumes int
	// SnapshotTime is how long volume snapshots are not ready to use, as where they are copied to another place first.
	SnapshotTime time.Duration
	// Without leaves features out.
	Without []Feature
}

// Server has the identity, controller and node services. It is safe for concurrent use.
type Server struct {
	identity   *identity
	controller *controller
	node       *node
	storage    *storage
}

// machine is what the services of all its nodes share.
type machine struct {
	driver  *loopdev.Driver
	options Options
	without map[Feature]bool
	holders *holders

	// attaching is held while volumes are counted and one more is attached.
	attaching sync.Mutex
}

// storage is what the services of one node share.
type storage struct {
	*machine
	nodeID string
}

type identity struct {
	csi.UnimplementedIdentityServer
	version string
}

type controller struct {
	csi.UnimplementedControllerServer
	storage *storage
}

type node struct {
	csi.UnimplementedNodeServer
	storage *storage
}

// New serves the driver, which the caller closes. Options that cannot be are blockdev.ErrInvalid.
func New(driver *loopdev.Driver, options Options) (*Server, error) {
	if err := checkNodeID(options.NodeID); err != nil {
		return nil, err
	}
	if options.MaxVolumes < 0 || options.SnapshotTime < 0 {
		return nil, fmt.Errorf("at most %d volumes, volume snapshots ready after %s: want 0 or more: %w", options.MaxVolumes, options.SnapshotTime, blockdev.ErrInvalid)
	}
	known := make(map[Feature]bool)
	for _, f := range Features() {
		known[f] = true
	}
	without := make(map[Feature]bool)
	for _, f := range options.Without {
		if !known[f] {
			return nil, fmt.Errorf("feature %q: want one of %v: %w", f, Features(), blockdev.ErrInvalid)
		}
		without[f] = true
	}
	m := &machine{driver: driver, options: options, without: without, holders: &holders{file: options.Holders}}
	return m.server(options.NodeID), nil
}

func (m *machine) server(nodeID string) *Server {
	st := &storage{m, nodeID}
	return &Server{&identity{version: m.options.Version}, &controller{storage: st}, &node{storage: st}, st}
}

// ForNode serves another node, which is played by the same machine: it has the same volumes and volume snapshots, but a
// volume is attached to one node at a time. Each node's controller attaches to that node only.
func (s *Server) ForNode(nodeID string) (*Server, error) {
	if err := checkNodeID(nodeID); err != nil {
		return nil, err
	}
	return s.storage.server(nodeID), nil
}

func checkNodeID(id string) error {
	// The spec limits node IDs to 256 bytes.
	if id == "" || len(id) > 256 {
		return fmt.Errorf("node ID %q: want 1 to 256 bytes: %w", id, blockdev.ErrInvalid)
	}
	return nil
}

// Register adds the three services to a gRPC server.
func (s *Server) Register(to grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(to, s.identity)
	csi.RegisterControllerServer(to, s.controller)
	csi.RegisterNodeServer(to, s.node)
}

// topology is the machine, whichever of its nodes asks.
func (s *storage) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey: s.options.NodeID}}
}
