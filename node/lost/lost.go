// Package lost tells which layers no disk of the node has any more, which images and containers of containerd are
// concerned, and removes such images so that they can be pulled anew.
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

// States of lost layers.
const (
	// Waiting is one that is made anew as soon as something needs it.
	Waiting State = "waiting"
	// Making is one that is being made anew.
	Making State = "making"
	// Failed is one that could not be made anew; it is tried again when something needs it.
	Failed State = "failed"
)

// States lists them all.
func States() []State { return []State{Waiting, Making, Failed} }

// Layer is one that a snapshot needs and no disk serves.
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

// Disk is one that does not serve, and of which layers are or were in use.
type Disk struct {
	Name, UUID string
	// Place is where it was mounted.
	Place string
}

// Stranded is a container that runs from a lost disk. It gets I/O errors, which nothing but a new start ends.
type Stranded struct {
	users.User
	Disk string
}

// Report is all that is lost.
type Report struct {
	Layers []Layer
	// Stranded are the containers that run from disks that are lost, whether or not their layers were made anew since.
	Stranded []Stranded
	// Unknown is why it is not known who is concerned; nil if it is.
	Unknown error
}

// askTimeout bounds asking containerd who is concerned: what is lost is told in any case.
const askTimeout = 3 * time.Second

// Node tells what is lost, without those who are concerned.
type Node func(ctx context.Context) ([]Layer, []Disk, error)

// Finder finds who is concerned.
type Finder struct {
	node        Node
	client      *client.Client
	snapshotter string
}

// New makes a Finder that asks a containerd, where berthd has the name of that snapshotter.
func New(node Node, c *client.Client, snapshotter string) *Finder {
	return &Finder{node: node, client: c, snapshotter: snapshotter}
}

// List what is lost of a disk, by its name or UUID; of all disks if that is empty.
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

// addUsers says of each layer who needs it.
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
