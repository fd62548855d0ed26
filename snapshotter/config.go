package snapshotter

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// Config is what Open needs.
type Config struct {
	// Root is an absolute path of the directory for metadata and local layers. It is created if missing. The layer
	// directories of the source should lie below it too, because the paths of all layers of a container have to fit on
	// one page when they are mounted, and what they have in common is counted only once.
	Root string
	// Source has the layers of the disks.
	Source LayerSource
	// Observer learns what became of each layer. It may be nil.
	Observer Observer
	// Maker makes layers anew whose disks are lost; nil if nobody can.
	Maker LayerMaker
	// MendWait is how long a request waits for that, which goes on afterwards.
	MendWait time.Duration
	// Protocol is how adopted layers are reported to containerd; the zero value is ProtocolAuto.
	Protocol Protocol
	// MountOptions are added to every overlay mount, as the option mount_options of containerd's overlay snapshotter.
	MountOptions []string

	// step is called with the name of each step that a crash may follow; tests copy the state there.
	step func(name string)
}

// Protocol is the way in which the snapshotter reports to containerd that a layer need not be fetched;
// docs/snapshotter.md has the table of what each version understands.
type Protocol int

const (
	// ProtocolAuto answers "already exists" to a Prepare that names its parent, and hands out read-only mounts to one
	// that does not (parallel unpacking). It is safe with every version: those that do not understand read-only mounts
	// unpack into the directory below them, which is then committed as a local layer.
	ProtocolAuto Protocol = iota
	// ProtocolSequential only ever answers "already exists": with parallel unpacking all layers but the lowest miss.
	ProtocolSequential
	// ProtocolEarlyMounts only ever hands out read-only mounts, which containerd understands from 2.4 on; before, every
	// layer misses.
	ProtocolEarlyMounts
)

// String is the name that ParseProtocol reads.
func (p Protocol) String() string {
	switch p {
	case ProtocolAuto:
		return "auto"
	case ProtocolSequential:
		return "sequential"
	case ProtocolEarlyMounts:
		return "early-mounts"
	}
	return fmt.Sprintf("protocol(%d)", int(p))
}

// ParseProtocol reads the name of a protocol. An unknown one is errdefs.ErrInvalidArgument.
func ParseProtocol(name string) (Protocol, error) {
	for _, p := range []Protocol{ProtocolAuto, ProtocolSequential, ProtocolEarlyMounts} {
		if name == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: want auto, sequential or early-mounts: %w", name, errdefs.ErrInvalidArgument)
}

// Observer learns what became of every layer that containerd was about to fetch, once per layer and pull, and which
// containers are made of adopted layers. It is called while containerd waits, so it must not block.
type Observer interface {
	// Hit is a layer that containerd need not fetch.
	Hit(ctx context.Context, hit Hit)
	// Miss is a layer that containerd has to fetch and unpack.
	Miss(ctx context.Context, miss Miss)
	// Start is a container that is about to be made on top of an adopted layer, with whatever else is below.
	Start(ctx context.Context, start Start)
}

// Start says what a container is made of.
type Start struct {
	// ChainID of all its layers; the topmost of them is on the disk.
	ChainID  digest.Digest
	DiskUUID string
}

// Hit says which layer was served and from where.
type Hit struct {
	Layer       LayerRequest
	DiskUUID    string
	LayerNumber int
	MatchedBy   layerdisk.Match
	// BlobSize is the number of compressed bytes that were not fetched; 0 if unknown.
	BlobSize int64
}

// Miss says which layer was not served and why.
type Miss struct {
	Layer LayerRequest
	// Err says why, and wraps what LayerSource answered. It is errdefs.ErrNotFound if no disk has the layer,
	// errdefs.ErrFailedPrecondition if containerd asked in a way that leaves no safe answer but "fetch it", and
	// anything else if something is wrong.
	Err error
}

// Adopted is a snapshot whose content lies on a layer disk, and one location where it is held.
type Adopted struct {
	// Name is the key or name in this snapshotter's own store, not the one containerd shows.
	Name        string
	Holder      string
	DiskUUID    string
	LayerNumber int
	ChainID     digest.Digest
	// DiffID of the layer, empty if it is Local.
	DiffID digest.Digest
	// Local says that the layer was made anew since, so that only containers that were started before can need the
	// disk.
	Local bool
	// Mend is what is done about the layer if it is lost; its zero value if nothing was tried.
	Mend Mend
}

func (c Config) validate() error {
	if !filepath.IsAbs(c.Root) || filepath.Clean(c.Root) != c.Root || c.Root == "/" {
		return fmt.Errorf("root %q is not a clean absolute path below /, mounts need one: %w", c.Root, errdefs.ErrInvalidArgument)
	}
	if err := checkMountPath(c.Root); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if c.Source == nil {
		return fmt.Errorf("no layer source: %w", errdefs.ErrInvalidArgument)
	}
	if c.Protocol < ProtocolAuto || c.Protocol > ProtocolEarlyMounts {
		return fmt.Errorf("%s: %w", c.Protocol, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkMountPath refuses what cannot be a part of overlay's mount options: the kernel separates options at commas and
// lower directories at colons, and containerd does not escape either.
func checkMountPath(path string) error {
	if !filepath.IsAbs(path) || strings.ContainsAny(path, ",:\\\"\x00\n") {
		return fmt.Errorf("path %q is not absolute or has one of , : \\ \" in it, which an overlay mount cannot name: %w",
			path, errdefs.ErrInvalidArgument)
	}
	return nil
}
