// Package nodeservice has the use cases behind berth.control.v1: look at a node's layer disks, attach and detach them,
// and explain how layers are found. server.go and messages.go are its thin gRPC adapter; the rest knows no gRPC.
package nodeservice

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/readahead"
)

// MaxExplain bounds the layers of one request; no image that runs has as many.
const MaxExplain = 1000

// Layers looks into the indexes of the attached disks and changes nothing; a *stage.Stager does.
type Layers interface {
	// Locate finds the disk that would serve a layer. Not found is errdefs.ErrNotFound, whose text says why.
	Locate(q layerdisk.LayerName) (stage.Held, error)
	// Images finds the images of a normalised reference.
	Images(reference string, platform platforms.Matcher) []stage.FoundImage
}

// Images registers images of disks in containerd; an *imageimport.Importer does.
type Images interface {
	// Status of the images of a disk, and why not all of them are registered that could be.
	Status(disk, uuid string) ([]imageimport.Image, error)
	// Withdraw takes the images of a disk back before it is detached. No images are registered until release is called.
	Withdraw(ctx context.Context, disk string) (release func(), err error)
}

// Choices remembers how disks were chosen for pulls; an *ondemand.Chooser does.
type Choices interface {
	// Last choice for an image by its reference, or, where containerd did not name the image, by the chain IDs of its
	// layers.
	Last(imageRef string, chainIDs ...digest.Digest) (ondemand.Record, bool)
}

// ReadAhead reports what is read ahead for starts of images; a *readahead.Reader does.
type ReadAhead interface {
	// Runs under way and the last ones that were: the youngest first.
	Runs() []readahead.Run
}

// Uses returns, by the UUID of each disk, the chain IDs of the layer stacks that containerd's snapshots use from it.
type Uses func(ctx context.Context) (map[string][]digest.Digest, error)

// Config is what the service reports on and acts on.
type Config struct {
	Node   Node
	Disks  *disks.Keeper
	Layers Layers
	Ledger *events.Ledger
	// Images is nil if no images are registered in containerd, Choices if no disks are chosen for pulls, and ReadAhead
	// if nothing is read ahead.
	Images    Images
	Choices   Choices
	ReadAhead ReadAhead
	// Uses of disks.
	Uses Uses
	// Lost layers; nil if there is no containerd to ask.
	Lost Lost
}

// Node is what Status says about the daemon itself.
type Node struct {
	Version string
	PID     int
	Started time.Time
	Root    string
}

// Disk is a layer disk as the node sees it, with its images in containerd.
type Disk struct {
	disks.Disk
	// Images of the disk that were to be registered in containerd.
	Images []imageimport.Image
	// ImportError is why not all of them are registered that could be; it is tried again.
	ImportError error
}

// Status is the status of a node at one moment.
type Status struct {
	Node
	events.Counts
	// AdoptedSnapshots are containerd's snapshots that are layers on a disk.
	AdoptedSnapshots int
	Disks            []Disk
	// ReadAhead has the runs under way and the last ones.
	ReadAhead []readahead.Run
}

// Answer says how a pull would find a layer now.
type Answer struct {
	// Held is nil if no disk would serve the layer; then Reason says why.
	Held   *stage.Held
	Reason string
	// Last is how a pull was answered. It is nil if no pull asked or the answer is forgotten.
	Last *events.Event
}

// Image is an image's bytes as a disk keeps them.
type Image struct {
	Disk             string
	Manifest, Config []byte
}

// Service has the use cases. It is safe for concurrent use.
type Service struct {
	cfg Config
}

// New returns the service.
func New(cfg Config) *Service { return &Service{cfg} }

// Status returns the status of the node.
func (s *Service) Status() Status {
	st := Status{Node: s.cfg.Node, Counts: s.cfg.Ledger.Counts(), Disks: s.ListDisks()}
	for _, d := range st.Disks {
		st.AdoptedSnapshots += d.Holders
	}
	if s.cfg.ReadAhead != nil {
		st.ReadAhead = s.cfg.ReadAhead.Runs()
	}
	return st
}

// ListDisks lists attached and awaited disks by name.
func (s *Service) ListDisks() []Disk {
	var list []Disk
	for _, d := range s.cfg.Disks.List() {
		disk := Disk{Disk: d}
		if s.cfg.Images != nil {
			disk.Images, disk.ImportError = s.cfg.Images.Status(d.Name, d.UUID)
		}
		list = append(list, disk)
	}
	return list
}

// AttachDisk attaches a disk and returns when it serves. An empty name is derived from the ID of the volume or volume
// snapshot, and an empty driver is that of this node's files and block devices.
func (s *Service) AttachDisk(ctx context.Context, spec stage.Spec) (disks.Disk, error) {
	source := cmp.Or(spec.VolumeID, spec.VolumeSnapshotID)
	if source == "" {
		return disks.Disk{}, fmt.Errorf("attach disk: no volume or volume snapshot named: %w", errdefs.ErrInvalidArgument)
	}
	if spec.VolumeID != "" && spec.VolumeSnapshotID != "" {
		return disks.Disk{}, fmt.Errorf("attach disk: volume %s or volume snapshot %s, name one of them: %w",
			spec.VolumeID, spec.VolumeSnapshotID, errdefs.ErrInvalidArgument)
	}
	spec.Driver = cmp.Or(spec.Driver, loopdev.Name)
	if spec.Driver == loopdev.Name && filepath.IsAbs(spec.VolumeID) {
		spec.VolumeID = filepath.Clean(spec.VolumeID)
	}
	if spec.Name == "" {
		spec.Name = disks.NameFor(source)
	}
	if expect := spec.Expect.IndexDigest; expect != "" {
		if err := expect.Validate(); err != nil {
			return disks.Disk{}, fmt.Errorf("attach %s: expected index digest %q: %w: %w", source, expect, err, errdefs.ErrInvalidArgument)
		}
	}
	disk, err := s.cfg.Disks.Attach(ctx, spec)
	switch {
	case err == nil:
		return disk, nil
	case errdefs.IsInvalidArgument(err) || errdefs.IsAlreadyExists(err):
		return disks.Disk{}, fmt.Errorf("attach %s: %w", source, err)
	case s.cfg.Disks.Tries(spec.Name):
		return disks.Disk{}, fmt.Errorf("attach %s: it failed and is tried again in the background: %w", source, err)
	}
	return disks.Disk{}, fmt.Errorf("attach %s: it failed and is not tried again: %w", source, err)
}

// DetachDisk returns the number of snapshots that still use a drained disk; 0 means that it is detached. A configured
// disk that was never attached is no longer awaited. The disk's images are taken back from containerd first, if nothing
// else uses the disk; a disk that drains loses them by itself.
func (s *Service) DetachDisk(ctx context.Context, name string, drain bool) (holders int, err error) {
	if s.cfg.Images != nil && !drain {
		release, err := s.cfg.Images.Withdraw(ctx, name)
		if err != nil {
			return 0, fmt.Errorf("detach disk %s: %w", name, err)
		}
		defer release()
	}
	holders, err = s.cfg.Disks.Detach(ctx, name, drain)
	if err != nil {
		return 0, fmt.Errorf("detach disk %s: %w", name, err)
	}
	return holders, nil
}

// DiskUse is what is in use of a disk. Disk is its name, which is empty if the node no longer has the disk.
type DiskUse struct {
	Disk, UUID string
	Chains     []digest.Digest
}

// ListUses lists what is in use of a disk, or of all disks if no name is given, by UUID.
func (s *Service) ListUses(ctx context.Context, disk string) ([]DiskUse, error) {
	chains, err := s.cfg.Uses(ctx)
	if err != nil {
		return nil, fmt.Errorf("list uses of disks: %w", err)
	}
	names, found := map[string]string{}, disk == ""
	for _, d := range s.cfg.Disks.List() {
		names[d.UUID] = d.Name
		found = found || d.Name == disk
	}
	if !found {
		return nil, fmt.Errorf("list uses of disk %s: there is no disk of this name: %w", disk, errdefs.ErrNotFound)
	}
	var uses []DiskUse
	for _, uuid := range slices.Sorted(maps.Keys(chains)) {
		if disk == "" || names[uuid] == disk {
			uses = append(uses, DiskUse{Disk: names[uuid], UUID: uuid, Chains: slices.Sorted(slices.Values(chains[uuid]))})
		}
	}
	return uses, nil
}

// FindImage finds the image that fits the platform best in the indexes of the attached disks.
func (s *Service) FindImage(reference string, platform ocispec.Platform) (Image, error) {
	if reference == "" {
		return Image{}, fmt.Errorf("find image: no reference: %w", errdefs.ErrInvalidArgument)
	}
	matcher := platforms.Only(platform)
	found := s.cfg.Layers.Images(reference, matcher)
	if len(found) == 0 {
		return Image{}, fmt.Errorf("find image %s: no attached disk has it for %s: %w", reference, platforms.FormatAll(platform), errdefs.ErrNotFound)
	}
	best := slices.MinFunc(found, func(a, b stage.FoundImage) int {
		switch {
		case matcher.Less(a.Image.Platform, b.Image.Platform):
			return -1
		case matcher.Less(b.Image.Platform, a.Image.Platform):
			return 1
		}
		return 0
	})
	return Image{Disk: best.DiskName, Manifest: best.Image.RawManifest, Config: best.Image.RawConfig}, nil
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
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		held, err := s.cfg.Layers.Locate(l)
		if err != nil {
			answers[i].Reason = err.Error()
		} else {
			answers[i].Held = &held
		}
		answers[i].Last = s.cfg.Ledger.Last(l.ChainID)
	}
	return answers, nil
}

// LastChoice returns the last choice of disks for a pull of the image with these layers. ok is false if there was no
// choice or it is forgotten. An image without a name has none.
func (s *Service) LastChoice(imageRef string, layers []layerdisk.LayerName) (choice ondemand.Record, ok bool) {
	if s.cfg.Choices == nil || imageRef == "" {
		return ondemand.Record{}, false
	}
	chainIDs := make([]digest.Digest, 0, len(layers))
	for _, l := range layers {
		chainIDs = append(chainIDs, l.ChainID)
	}
	return s.cfg.Choices.Last(imageRef, chainIDs...)
}

// Watch returns the events from now on; see events.Ledger.Watch.
func (s *Service) Watch(ctx context.Context) *events.Watcher { return s.cfg.Ledger.Watch(ctx) }
