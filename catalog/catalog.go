// Package catalog says which image snapshots there are and what they hold: what a node needs to choose one, attach its disk and
// prove it, without asking who made it. A source is a folder below this one.
package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/layerdisk"
)

// Entry is one image snapshot.
type Entry struct {
	// Name as the user knows it; unique within a catalog.
	Name string `json:"name"`
	// ID is stable and unique.
	ID    string `json:"id"`
	Owner string `json:"owner,omitempty"`
	// State is StateAvailable if it may be used, otherwise the phase it is in. Whoever chooses shows it as it is.
	State string `json:"state"`
	// Created is when the content was made, Expires when it may no longer be used; zero is never.
	Created   time.Time             `json:"created"`
	Expires   time.Time             `json:"expires,omitzero"`
	Origin    imagesnapshot.Origin  `json:"origin,omitempty"`
	SizeBytes int64                 `json:"sizeBytes,omitempty"`
	Images    []imagesnapshot.Image `json:"images,omitempty"`

	Source Source `json:"source"`
	// Identity of the layer disk, which whoever attaches it has to demand.
	Identity layerdisk.Identity `json:"identity,omitzero"`
	// Index is the encoded index of the disk, whose digest is in Identity; empty as long as there is no disk. It is shared
	// and must not be changed.
	Index []byte `json:"-"`
}

// StateAvailable is the State of an entry that may be used.
const StateAvailable = string(imagesnapshot.PhaseAvailable)

// Source says where the disk comes from: one of SnapshotIDs, VolumeID and Path.
type Source struct {
	// Driver is the name that the node has for the storage.
	Driver string `json:"driver,omitempty"`
	// SnapshotIDs are volume snapshots, each of which will do; nodes spread over them.
	SnapshotIDs []string `json:"snapshotIDs,omitempty"`
	// VolumeID is a volume to attach as it is, read-only, and never to delete.
	VolumeID string `json:"volumeID,omitempty"`
	// Path is a file or block device on the node.
	Path string `json:"path,omitempty"`
}

// Lister gives entries.
type Lister interface {
	// List gives all, sorted by name.
	List(ctx context.Context) ([]Entry, error)
	// Watch sends every entry that there is, and then each change. It may leave out states in between, never the last one.
	// The channel is closed when ctx ends or the source fails.
	Watch(ctx context.Context) (<-chan Change, error)
}

// Change is one entry's new state.
type Change struct {
	// Entry as it is now; if Removed only its Name and ID.
	Entry   Entry
	Removed bool
}

// Publisher makes entries known to nodes.
type Publisher interface {
	// Publish adds an entry or replaces the one of the same name. Nodes see it whole or not at all.
	Publish(ctx context.Context, e Entry) error
	// Withdraw removes an entry. One that is not there is no error.
	Withdraw(ctx context.Context, name string) error
}

// Check refuses entries that contradict themselves; the class is errdefs.ErrInvalidArgument. Index is checked against Identity, and
// parsed.
func (e *Entry) Check() error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("catalog entry %q: "+format+": %w", append(append([]any{e.Name}, args...), errdefs.ErrInvalidArgument)...)
	}
	if err := imagesnapshot.CheckName(e.Name); err != nil {
		return refuse("%w", err)
	}
	if e.ID == "" || e.State == "" {
		return refuse("no ID or no state")
	}
	ways := 0
	for _, given := range []bool{len(e.Source.SnapshotIDs) > 0, e.Source.VolumeID != "", e.Source.Path != ""} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		return refuse("more than one of volume snapshots, volume and path")
	}
	if e.State == StateAvailable && (ways == 0 || len(e.Index) == 0) {
		return refuse("available, but without a source or without the index of its disk")
	}
	if len(e.Index) == 0 {
		return nil
	}
	if got := digest.SHA256.FromBytes(e.Index); got != e.Identity.IndexDigest {
		return refuse("its index has digest %s, its identity says %s", got, e.Identity.IndexDigest)
	}
	ix, err := layerdisk.Parse(e.Index)
	if err != nil {
		return refuse("%w", err)
	}
	if ix.UUID != e.Identity.UUID {
		return refuse("its index has UUID %s, its identity says %s", ix.UUID, e.Identity.UUID)
	}
	return nil
}
