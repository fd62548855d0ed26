// Package lost reports which layers no disk of the node has any more and which images and containers of containerd are
// affected. It removes such images so that they can be pulled again.
package lost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/node/users"
)

// State of a lost layer.
type State string

// These are the states of lost layers.
const (
	// Waiting is a layer that is made anew as soon as something needs it.
	Waiting State = "waiting"
	// Making is a layer that is being made anew.
	Making State = "making"
	// Failed is a layer that could not be made anew; this is tried again when something needs the layer.
	Failed State = "failed"
)

// States returns all values of State.
func States() []State { return []State{Waiting, Making, Failed} }

// Layer is a layer that a snapshot needs and that no disk serves.
type Layer struct {
	// Disk is the name of the disk that has it, empty if the node does not know that disk.
	Disk, DiskUUID  string
	Number          int
	ChainID, DiffID digest.Digest
	State           State
	// Reason is why the disk does not serve, or why the layer could not be made anew.
	Reason string
	// Users are the images, containers and leases that need it.
	Users []users.User
}

// Disk is a disk that does not serve and whose layers are or were in use.
type Disk struct {
	Name, UUID string
	// Place is where it was mounted.
	Place string
}

// Stranded is a container that runs from a lost disk. It gets I/O errors until it is started again.
type Stranded struct {
	users.User
	Disk string
}

// Report is all that is lost.
type Report struct {
	Layers []Layer
	// Stranded are the containers that run from disks that are lost, whether or not their layers were made anew since.
	Stranded []Stranded
	// Unknown is why the affected users are not known; nil if they are.
	Unknown error
}

// askTimeout bounds asking containerd for the affected users: what is lost is reported in any case.
const askTimeout = 3 * time.Second

// Node returns what is lost, without the affected users.
type Node func(ctx context.Context) ([]Layer, []Disk, error)

// Finder finds what is lost and who is affected.
type Finder struct {
	node        Node
	client      *client.Client
	snapshotter string
}

// New makes a Finder that asks a containerd, which knows berthd under the name of that snapshotter.
func New(node Node, c *client.Client, snapshotter string) *Finder {
	return &Finder{node: node, client: c, snapshotter: snapshotter}
}

// List returns what is lost of the disk with this name or UUID, or of all disks if disk is empty.
func (f *Finder) List(ctx context.Context, disk string) (Report, error) {
	layers, disks, err := f.node(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("list lost layers: %w", err)
	}
	r := Report{Layers: slices.DeleteFunc(layers, func(l Layer) bool { return disk != "" && disk != l.Disk && disk != l.DiskUUID })}
	disks = slices.DeleteFunc(disks, func(d Disk) bool { return disk != "" && disk != d.Name && disk != d.UUID })
	slices.SortFunc(r.Layers, func(a, b Layer) int {
		return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.DiskUUID, b.DiskUUID), cmp.Compare(a.Number, b.Number), cmp.Compare(a.ChainID, b.ChainID))
	})
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var concerned error
	if len(r.Layers) > 0 {
		concerned = f.addUsers(ctx, r.Layers)
	}
	var stranded error
	if len(disks) > 0 {
		r.Stranded, stranded = f.stranded(ctx, disks)
	}
	r.Unknown = errors.Join(concerned, stranded)
	return r, nil
}

// addUsers adds to each layer the users that need it.
func (f *Finder) addUsers(ctx context.Context, layers []Layer) error {
	all, err := users.Find(ctx, f.client, f.snapshotter, chainsOf(layers))
	if err != nil {
		return err
	}
	for i := range layers {
		for _, u := range all {
			if slices.Contains(u.Chains, layers[i].ChainID) {
				layers[i].Users = append(layers[i].Users, u)
			}
		}
	}
	return nil
}

func chainsOf(layers []Layer) map[digest.Digest]bool {
	chains := map[digest.Digest]bool{}
	for _, l := range layers {
		chains[l.ChainID] = true
	}
	return chains
}
