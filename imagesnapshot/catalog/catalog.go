// Package catalog tells nodes which image snapshots there are: what is on each layer disk, and where the disk is. An
// entry carries the disk's whole index, so that a node can match images against it by layer without attaching anything.
//
// A catalog decides which disk is attached, never which bytes are served: what is attached has to prove that it is the
// disk of this index, and layers are found on it by their digests.
//
// Where entries are kept is the matter of a folder below this one; package catalogtest proves that it keeps to what is
// written here.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
)

// Entry is one image snapshot as nodes see it. Images, their platforms, digests and sizes are those of the index and
// written nowhere else, so that nothing can contradict it.
type Entry struct {
	// Name as the user knows it.
	Name string
	// ID is stable and unique in the catalog: 1 to 128 of a-z, A-Z, 0-9, '.', '_' and '-', not beginning with '.'.
	ID string
	// State is StateAvailable if nodes may use it; any other word is shown to people as it is.
	State string
	// Created is when the content was made.
	Created time.Time
	// Expires is when it may no longer be used; the zero time is never.
	Expires time.Time
	Source  Source
	// Index is the layer disk's encoded index. It is shared by all who have the entry and must not be changed.
	Index []byte
	// Images are set in place of Source and Index if there is no disk, because it is still being made or already taken
	// down. They are normalised references. Nobody can use such an entry, but nodes can say why (C-3).
	Images []string
}

// HasDisk says whether the entry has a layer disk, whatever its state.
func (e *Entry) HasDisk() bool { return len(e.Images) == 0 }

// StateAvailable is the state of entries that may be used.
const StateAvailable = string(imagesnapshot.PhaseAvailable)

// Source is where the layer disk is, in the words of its driver.
type Source struct {
	// Driver is the name of a block storage driver that nodes have.
	Driver string
	// VolumeSnapshotID is a volume snapshot, from which each node makes a volume of its own. Either this or VolumeID is
	// set.
	VolumeSnapshotID string
	// VolumeID is a volume, which nodes attach read-only and never delete. The driver "loop" takes an absolute path
	// too.
	VolumeID string
}

// Lister reports which entries there are.
type Lister interface {
	// Watch sends every entry that there is, then one Change that says Synced, and then each change. States in between
	// may be left out, never the last one. The channel is closed when ctx ends. A receiver that does not receive holds
	// up nobody but itself.
	Watch(ctx context.Context) (<-chan Change, error)
}

// Looker is a Lister that finds changes only by looking now and then.
type Looker interface {
	// Look makes all watches look now. It returns when their receivers have received what was found and the Change that
	// says Looked after it.
	Look(ctx context.Context) error
}

// Publisher adds, replaces and withdraws entries.
type Publisher interface {
	// Publish adds the entry or replaces the one with its ID, in one step: nobody ever sees a part of it. It is
	// errdefs.ErrInvalidArgument if Validate refuses the entry.
	Publish(ctx context.Context, e Entry) error
	// Withdraw removes the entry with this ID; one that is not there is no error.
	Withdraw(ctx context.Context, id string) error
}

// ListPublisher publishes the access lists of the images of entries. They are kept beside the entries, because nobody
// reads them before an image starts.
type ListPublisher interface {
	// PublishAccessLists replaces all access lists of the entry with that ID by lists; without any, it removes them.
	// Withdraw removes them too.
	PublishAccessLists(ctx context.Context, id string, lists []*accesslist.List) error
}

// Change is one message of Watch. One of Entry, Problem, Synced and Looked is set.
type Change struct {
	// Entry that is new or changed. If Deleted is set, only its ID is.
	Entry   *Entry
	Deleted bool
	// Problem is something that should be an entry and cannot be used. It is sent once, and again when it has changed.
	Problem error
	// Synced says that everything there was when Watch was called has been sent.
	Synced bool
	// Looked says that everything there was when Looker.Look was called has been sent. It asks nothing of a receiver.
	Looked bool
}

const (
	maxIDBytes = 128
	// maxNameBytes is that of a Kubernetes object, the longest name of any front end.
	maxNameBytes = 253
	// maxTextBytes bounds the words of a driver; volume IDs of clouds have some hundred bytes, paths at most PATH_MAX.
	maxTextBytes = 4096
	// maxReferenceBytes is the matcher's; references are far shorter.
	maxReferenceBytes = 1024
)

// Parse checks the entry, its index included, and gives the index, nil for an entry without a disk. Errors are
// errdefs.ErrInvalidArgument.
func (e *Entry) Parse() (*layerdisk.Index, layerdisk.Identity, error) {
	if err := e.check(); err != nil {
		return nil, layerdisk.Identity{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if !e.HasDisk() {
		return nil, layerdisk.Identity{}, nil
	}
	ix, identity, err := layerdisk.ParseIdentified(e.Index)
	if err != nil {
		return nil, layerdisk.Identity{}, fmt.Errorf("index: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return ix, identity, nil
}

func (e *Entry) check() error {
	if err := CheckID(e.ID); err != nil {
		return err
	}
	for _, t := range []struct {
		field, value string
		most         int
	}{
		{"name", e.Name, maxNameBytes}, {"state", e.State, maxNameBytes},
	} {
		if err := checkText(t.field, t.value, t.most); err != nil {
			return err
		}
	}
	if e.HasDisk() {
		return e.Source.check()
	}
	return e.checkImages()
}

// checkImages of an entry without a disk.
func (e *Entry) checkImages() error {
	if e.State == StateAvailable || e.Source != (Source{}) || len(e.Index) > 0 {
		return fmt.Errorf("images are named for entries without a disk, and this one has a disk, or the state %q that needs one", StateAvailable)
	}
	if len(e.Images) > layerdisk.MaxImages {
		return fmt.Errorf("%d images, at most %d are allowed", len(e.Images), layerdisk.MaxImages)
	}
	for _, ref := range e.Images {
		if err := checkText("image", ref, maxReferenceBytes); err != nil {
			return err
		}
	}
	return nil
}

func (s Source) check() error {
	if err := checkText("driver", s.Driver, maxNameBytes); err != nil {
		return err
	}
	if (s.VolumeSnapshotID == "") == (s.VolumeID == "") {
		return errors.New("name either a volume or a volume snapshot")
	}
	return checkText("ID of the volume or volume snapshot", s.VolumeSnapshotID+s.VolumeID, maxTextBytes)
}

func checkText(field, value string, most int) error {
	if value == "" || len(value) > most {
		return fmt.Errorf("%s %.80q: want 1 to %d bytes", field, value, most)
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%s %.80q has control characters", field, value)
	}
	return nil
}

// CheckID returns errdefs.ErrInvalidArgument for a string that cannot be the ID of an entry.
func CheckID(id string) error {
	ok := id != "" && len(id) <= maxIDBytes && id[0] != '.'
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("ID %.140q: want 1 to %d of a-z, A-Z, 0-9, '.', '_' and '-', not beginning with '.': %w", id, maxIDBytes, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ReadIndex reads the encoded index of the layer disk in the device or file r, proved as layerdisk.ReadIndex proves it,
// with the same errors.
func ReadIndex(r io.ReaderAt) ([]byte, error) {
	_, identity, err := layerdisk.ReadIndex(r)
	if err != nil {
		return nil, err
	}
	h, err := layerdisk.ReadHeader(r)
	if err != nil {
		return nil, err
	}
	data := make([]byte, h.IndexBytes)
	if _, err := io.ReadFull(io.NewSectionReader(r, h.IndexOffset, h.IndexBytes), data); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	if digest.FromBytes(data) != identity.IndexDigest {
		return nil, fmt.Errorf("read index: the disk changes while it is read: %w", errdefs.ErrUnavailable)
	}
	return data, nil
}
