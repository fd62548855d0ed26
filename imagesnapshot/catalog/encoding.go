package catalog

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// formatVersion of an encoded entry. A reader refuses others.
const formatVersion = 1

// MaxEncodedBytes is the most that an entry can have: the largest index in base64, and everything else.
const MaxEncodedBytes = layerdisk.MaxIndexBytes/3*4 + 1<<16

// encoded is an entry as JSON.
type encoded struct {
	Format  int       `json:"format"`
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	State   string    `json:"state"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Source  source    `json:"source,omitzero"`
	// IndexDigest detects damage on the way.
	IndexDigest digest.Digest `json:"indexDigest,omitempty"`
	Index       []byte        `json:"index,omitempty"`
	// Images are there if there is no disk.
	Images []string `json:"images,omitempty"`
}

// source has the field names of Source; its JSON keys are older than those names.
type source struct {
	Driver           string `json:"driver"`
	VolumeSnapshotID string `json:"snapshotID,omitempty"`
	VolumeID         string `json:"volumeID,omitempty"`
}

// Encode writes the entry as JSON; one that Parse refuses is errdefs.ErrInvalidArgument.
func Encode(e Entry) ([]byte, error) {
	_, identity, err := e.Parse()
	if err != nil {
		return nil, fmt.Errorf("encode catalog entry %.140q: %w", e.ID, err)
	}
	data, err := json.Marshal(encoded{
		Format: formatVersion, Name: e.Name, ID: e.ID, State: e.State, Created: e.Created.UTC(), Expires: e.Expires.UTC(),
		Source: source(e.Source), IndexDigest: identity.IndexDigest, Index: e.Index,
		Images: e.Images,
	})
	if err != nil {
		return nil, fmt.Errorf("encode catalog entry %s: %w", e.ID, err)
	}
	return append(data, '\n'), nil
}

// Decode reads what Encode wrote and checks all of it; the data may come from strangers. Errors are errdefs.ErrDataLoss
// for what is incomplete or contradicts itself, and errdefs.ErrInvalidArgument for what cannot be an entry.
func Decode(data []byte) (Entry, error) {
	if len(data) > MaxEncodedBytes {
		return Entry{}, fmt.Errorf("decode catalog entry: more than %d bytes: %w", MaxEncodedBytes, errdefs.ErrInvalidArgument)
	}
	var in encoded
	if err := json.Unmarshal(data, &in); err != nil {
		return Entry{}, fmt.Errorf("decode catalog entry: %w: %w", err, errdefs.ErrDataLoss)
	}
	if in.Format != formatVersion {
		return Entry{}, fmt.Errorf("decode catalog entry: format %d is not known here, only %d: %w", in.Format, formatVersion, errdefs.ErrInvalidArgument)
	}
	e := Entry{Name: in.Name, ID: in.ID, State: in.State, Created: in.Created, Expires: in.Expires, Source: Source(in.Source)}
	// What is empty is nil, as it was when it was written.
	if len(in.Index) > 0 {
		e.Index = in.Index
	}
	if len(in.Images) > 0 {
		e.Images = in.Images
	}
	if !e.HasDisk() && in.IndexDigest != "" {
		return Entry{}, fmt.Errorf("decode catalog entry: it names images, as one without a disk, and the index %.80q: %w", in.IndexDigest, errdefs.ErrInvalidArgument)
	}
	if got := digest.FromBytes(in.Index); e.HasDisk() && got != in.IndexDigest {
		return Entry{}, fmt.Errorf("decode catalog entry: its index has digest %s and not %.80q: %w", got, in.IndexDigest, errdefs.ErrDataLoss)
	}
	if _, _, err := e.Parse(); err != nil {
		return Entry{}, fmt.Errorf("decode catalog entry: %w", err)
	}
	return e, nil
}
