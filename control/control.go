// Package control has the use cases behind the APIs and the berth command: look at a node's layer disks, attach and
// detach them, explain how layers are found, and keep image snapshots. grpc.go, snapshotgrpc.go and the messages beside
// them are its thin gRPC adapter; everything else knows no gRPC.
package control

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/layerdisk"
)

// MaxExplain bounds the layers of one request; no image that runs has as many.
const MaxExplain = 1000

// Disk is a layer disk as the node sees it.
type Disk struct {
	Name string
	// Driver and VolumeID say what was attached; DefaultDriver's volume IDs may be paths. SnapshotID is the volume
	// snapshot that the volume was made of here, empty for one that was there.
	Driver, VolumeID, SnapshotID string
	// UUID and IndexDigest are empty until the disk has been proved.
	UUID        string
	IndexDigest digest.Digest
	// State in the words of the stage, and whether layers are served from the disk in it.
	State   string
	Serving bool
	// Device and MountPoint are empty if there is none.
	Device, MountPoint string
	SizeBytes          int64
	// Layers on the disk, those of them in use, and the number of snapshots that use them.
	Layers, LayersInUse, Holders int
	Since                        time.Time
	// LastError is empty if all is well.
	LastError string
	// Keep attached while nothing uses it.
	Keep bool
	// Configured disks are attached at every start.
	Configured bool
	// Imports are the images of the disk that containerd was to be told of; none unless they are to be registered.
	Imports []ImportedImage
	// ImportError is why not all of them are registered that could be; it is tried again.
	ImportError string
}

// ImportedImage is what became of an image of a disk that containerd was to be told of.
type ImportedImage struct {
	// Reference as the disk has it, and the namespace of containerd.
	Reference, Namespace string
	// Result in one word, "registered" if all is well; Reason says more of any other.
	Result, Reason string
}

// DiskSpec says what to attach: a volume, or one to be made of a volume snapshot.
type DiskSpec struct {
	Name                         string
	Driver, VolumeID, SnapshotID string
	Keep                         bool
	// Expect, if not empty, is the only index digest that is accepted.
	Expect digest.Digest
}

// DefaultDriver serves files and block devices of this node.
const DefaultDriver = "loop"

// Disks attaches and detaches layer disks. Errors are of errdefs' classes.
type Disks interface {
	List(ctx context.Context) ([]Disk, error)
	// Attach returns when the disk serves; attaching what is attached changes nothing.
	Attach(ctx context.Context, spec DiskSpec) (Disk, error)
	// Detach refuses a disk in use with errdefs.ErrFailedPrecondition. With drain it only stops serving new layers of
	// it and returns the number of snapshots that still use it.
	Detach(ctx context.Context, name string, drain bool) (holders int, err error)
}

// Location of a layer on a disk.
type Location struct {
	Disk        string
	LayerNumber int
	// MatchedBy is "chain-id", "diff-id" or "blob".
	MatchedBy string
}

// Image is an image's bytes as a disk keeps them.
type Image struct {
	Disk             string
	Manifest, Config []byte
}

// Layers looks into the attached disks' indexes and changes nothing. Not found is errdefs.ErrNotFound, whose text says
// why.
type Layers interface {
	Locate(ctx context.Context, layer layerdisk.LayerName) (Location, error)
	FindImage(ctx context.Context, reference string, platform ocispec.Platform) (Image, error)
}

// Node is what Status says about the daemon itself.
type Node struct {
	Version string
	PID     int
	Started time.Time
	Root    string
}

// Status of a node at one moment.
type Status struct {
	Node
	Counts
	// AdoptedSnapshots are the snapshots that are layers on a disk.
	AdoptedSnapshots int
	Disks            []Disk
	// Hydrations are those under way and the last ones.
	Hydrations []Hydration
}

// Answer tells how a pull would find a layer now.
type Answer struct {
	// Location is nil if no disk would serve the layer; then Reason says why.
	Location *Location
	Reason   string
	// Last is how a pull was answered, nil if none asked or it is forgotten.
	Last *Event
}

// Service has the use cases. It is safe for concurrent use.
type Service struct {
	node    Node
	disks   Disks
	layers  Layers
	waiting *Waiting
	ledger  *Ledger
	choices Choices
	// hydrations is nil if nothing is read ahead.
	hydrations Hydrations
}

// NewService serves disks, those that the configuration names and that are waiting included.
func NewService(node Node, disks Disks, layers Layers, waiting *Waiting, ledger *Ledger) *Service {
	return &Service{node: node, disks: disks, layers: layers, waiting: waiting, ledger: ledger}
}

// Status of the node.
func (s *Service) Status(ctx context.Context) (Status, error) {
	disks, err := s.ListDisks(ctx)
	if err != nil {
		return Status{}, err
	}
	st := Status{Node: s.node, Counts: s.ledger.Counts(), Disks: disks}
	for _, d := range disks {
		st.AdoptedSnapshots += d.Holders
	}
	if s.hydrations != nil {
		st.Hydrations = s.hydrations.Hydrations()
	}
	return st, nil
}

// ListDisks lists attached and awaited disks by name.
func (s *Service) ListDisks(ctx context.Context) ([]Disk, error) {
	disks, err := s.disks.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	disks = s.waiting.merge(disks)
	slices.SortFunc(disks, func(a, b Disk) int { return cmp.Compare(a.Name, b.Name) })
	return disks, nil
}

// AttachDisk attaches a disk and returns when it serves. An empty name is derived from the ID of the volume or volume
// snapshot.
func (s *Service) AttachDisk(ctx context.Context, spec DiskSpec) (Disk, error) {
	source := cmp.Or(spec.VolumeID, spec.SnapshotID)
	if source == "" {
		return Disk{}, fmt.Errorf("attach disk: no volume or volume snapshot named: %w", errdefs.ErrInvalidArgument)
	}
	if spec.VolumeID != "" && spec.SnapshotID != "" {
		return Disk{}, fmt.Errorf("attach disk: volume %s or volume snapshot %s, name one of them: %w", spec.VolumeID, spec.SnapshotID, errdefs.ErrInvalidArgument)
	}
	spec.Driver = cmp.Or(spec.Driver, DefaultDriver)
	if spec.Driver == DefaultDriver && filepath.IsAbs(spec.VolumeID) {
		spec.VolumeID = filepath.Clean(spec.VolumeID)
	}
	if spec.Name == "" {
		spec.Name = NameFor(source)
	}
	if spec.Expect != "" {
		if err := spec.Expect.Validate(); err != nil {
			return Disk{}, fmt.Errorf("attach %s: expected index digest %q: %w: %w", source, spec.Expect, err, errdefs.ErrInvalidArgument)
		}
	}
	disk, err := s.disks.Attach(ctx, spec)
	if err != nil {
		return Disk{}, fmt.Errorf("attach %s: %w", source, err)
	}
	s.waiting.remove(spec.Name)
	disk.Configured = s.waiting.configured(disk.Name)
	s.ledger.record(Event{Kind: DiskAttached, Disk: disk.Name})
	return disk, nil
}

// DetachDisk returns the number of snapshots that still use a drained disk; 0 means that it is detached. A configured
// disk that was never attached is no longer waited for.
func (s *Service) DetachDisk(ctx context.Context, name string, drain bool) (holders int, err error) {
	waited := s.waiting.remove(name)
	holders, err = s.disks.Detach(ctx, name, drain)
	if waited && errdefs.IsNotFound(err) {
		err = nil
	}
	if err != nil {
		return 0, fmt.Errorf("detach disk %s: %w", name, err)
	}
	s.ledger.record(Event{Kind: DiskDetached, Disk: name})
	return holders, nil
}

// FindImage finds an image in the attached disks' indexes.
func (s *Service) FindImage(ctx context.Context, reference string, platform ocispec.Platform) (Image, error) {
	if reference == "" {
		return Image{}, fmt.Errorf("find image: no reference: %w", errdefs.ErrInvalidArgument)
	}
	img, err := s.layers.FindImage(ctx, reference, platform)
	if err != nil {
		return Image{}, fmt.Errorf("find image %s: %w", reference, err)
	}
	return img, nil
}

// ExplainLayers answers for each layer, in order.
func (s *Service) ExplainLayers(ctx context.Context, layers []layerdisk.LayerName) ([]Answer, error) {
	if len(layers) > MaxExplain {
		return nil, fmt.Errorf("explain %d layers: at most %d at once: %w", len(layers), MaxExplain, errdefs.ErrInvalidArgument)
	}
	answers := make([]Answer, len(layers))
	for i, l := range layers {
		if l == (layerdisk.LayerName{}) {
			return nil, fmt.Errorf("explain layer %d: it has no name: %w", i, errdefs.ErrInvalidArgument)
		}
		for _, d := range []digest.Digest{l.ChainID, l.ParentChainID, l.DiffID, l.Blob} {
			if d != "" && d.Validate() != nil {
				return nil, fmt.Errorf("explain layer %d: %q is no digest: %w", i, d, errdefs.ErrInvalidArgument)
			}
		}
		loc, err := s.layers.Locate(ctx, l)
		switch {
		case err == nil:
			answers[i].Location = &loc
		case ctx.Err() != nil:
			return nil, ctx.Err()
		default:
			answers[i].Reason = err.Error()
		}
		answers[i].Last = s.ledger.Last(l.ChainID)
	}
	return answers, nil
}

// Watch returns the events from now on; see Ledger.Watch.
func (s *Service) Watch(ctx context.Context) *Watcher { return s.ledger.Watch(ctx) }

// NameFor derives a disk's name from the ID of its volume or volume snapshot: the last part of a path without its
// ending, in lower case, with '-' for what a name cannot have.
func NameFor(volumeID string) string {
	base := strings.ToLower(filepath.Base(volumeID))
	if ext := filepath.Ext(base); ext != base {
		base = strings.TrimSuffix(base, ext)
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, base)
	return strings.Trim(name[:min(len(name), 64)], ".-_")
}
