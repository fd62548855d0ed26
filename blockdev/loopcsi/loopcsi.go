// Package loopcsi serves the embedded loop driver as a CSI driver (container-storage-interface/spec v1.13), for block
// volumes on one node. It is what berth's CSI client is tested against, and makes the volumes of a machine without a cloud
// usable by any container orchestrator.
//
// A volume is attached, as a loop device, by ControllerPublishVolume; NodePublishVolume makes that device appear at the
// target. NodeStageVolume and NodePublishVolume attach it too if it is not, as after a reboot. Volumes with a file system are
// refused, and so are volume IDs that are paths, which the loop driver itself would attach.
package loopcsi

import (
	"fmt"
	"sync"

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
	// Version is told to clients.
	Version string
	// MaxVolumes that can be attached at once; 0 is no limit.
	MaxVolumes int
	// Without leaves features out.
	Without []Feature
}

// Server has the identity, controller and node services. It is safe for concurrent use.
type Server struct {
	*identity
	*controller
	*node
}

// storage is what the services share.
type storage struct {
	driver  *loopdev.Driver
	options Options
	without map[Feature]bool

	// attaching is held while volumes are counted and one more is attached.
	attaching sync.Mutex
}

type identity struct {
	csi.UnimplementedIdentityServer
	version string
}

type controller struct {
	csi.UnimplementedControllerServer
	*storage
}

type node struct {
	csi.UnimplementedNodeServer
	*storage
}

// New serves the driver, which the caller closes. Options that cannot be are blockdev.ErrInvalid.
func New(driver *loopdev.Driver, options Options) (*Server, error) {
	// The spec limits node IDs to 256 bytes.
	if options.NodeID == "" || len(options.NodeID) > 256 {
		return nil, fmt.Errorf("node ID %q: want 1 to 256 bytes: %w", options.NodeID, blockdev.ErrInvalid)
	}
	if options.MaxVolumes < 0 {
		return nil, fmt.Errorf("at most %d volumes: want 0 or more: %w", options.MaxVolumes, blockdev.ErrInvalid)
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
	st := &storage{driver: driver, options: options, without: without}
	return &Server{&identity{version: options.Version}, &controller{storage: st}, &node{storage: st}}, nil
}

// Register adds the three services to a gRPC server.
func (s *Server) Register(to grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(to, s.identity)
	csi.RegisterControllerServer(to, s.controller)
	csi.RegisterNodeServer(to, s.node)
}

func (s *storage) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey: s.options.NodeID}}
}
