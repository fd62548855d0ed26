// Package store says how image snapshots are kept: with optimistic concurrency, so that several can work on the same
// objects, and with a watch, so that nobody polls. A store is a folder below this one; package storetest proves that it
// keeps to what is written here.
//
// What goes in and comes out is a copy: a caller may change it without changing the store. Every method is safe for
// concurrent use, and obeys its context.
package store

import (
	"context"
	"maps"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/readahead/accesslist"
)

// Store keeps image snapshots by name. Errors are of the classes of containerd/errdefs that each method names, or those
// of the medium, Unavailable if trying again may help.
type Store interface {
	// Create adds s and gives it its ResourceVersion. A name that is taken is AlreadyExists, and so is an ID; a
	// non-empty ResourceVersion is InvalidArgument.
	Create(ctx context.Context, s *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error)
	// Get finds by name; NotFound.
	Get(ctx context.Context, name string) (*imagesnapshot.ImageSnapshot, error)
	// List returns what the filter lets through, sorted by name. With Filter.Limit it costs no more than what it gives
	// and what it passes over: of the owner, if one is named.
	List(ctx context.Context, f Filter) ([]*imagesnapshot.ImageSnapshot, error)
	// Update replaces the object of the same name if it is still at the ResourceVersion that s has, and gives the new
	// one; Conflict if it is not or if the name is another object's (ID) by now, NotFound if it is gone.
	Update(ctx context.Context, s *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error)
	// Delete removes the object if it is still at that ResourceVersion; Conflict, NotFound.
	Delete(ctx context.Context, name, resourceVersion string) error
}

// Watcher reports changes.
type Watcher interface {
	// Watch sends every object that there is, and then each change. It may leave out states in between, never the last
	// one: a slow receiver holds up nobody. An object that was deleted and created again in between may come without
	// its deletion, with another ID. The channel is closed when ctx ends or the store is closed.
	Watch(ctx context.Context) (<-chan Change, error)
}

// Change is one object's new state.
type Change struct {
	// Object as it is now, or was at last if Deleted.
	Object  *imagesnapshot.ImageSnapshot
	Deleted bool
}

// Indexes keeps the encoded indexes of layer disks by their digests. They are large (up to layerdisk.MaxIndexBytes), so
// they are no part of the objects.
type Indexes interface {
	// PutIndex keeps encoded; its digest must be d, or it is InvalidArgument. Keeping it again is no error.
	PutIndex(ctx context.Context, d digest.Digest, encoded []byte) error
	// GetIndex is NotFound if it is not there.
	GetIndex(ctx context.Context, d digest.Digest) ([]byte, error)
	// DeleteIndex deletes an index. A missing index is no error.
	DeleteIndex(ctx context.Context, d digest.Digest) error
	// ListIndexes returns the digests of all indexes.
	ListIndexes(ctx context.Context) ([]digest.Digest, error)
}

// MaxAccessLists of one image snapshot: more than the images of the largest, for some platforms each.
const MaxAccessLists = 256

// AccessLists keeps what starts of the images of image snapshots read, one list for each image and platform. They are
// no part of the objects, as indexes are not, and go with them: deleting an image snapshot deletes its lists, in one
// step.
type AccessLists interface {
	// PutAccessList keeps the list with the image snapshot of that ID, in place of the one of the same image and
	// platform. NotFound if there is no such image snapshot, InvalidArgument for what is no list, ResourceExhausted
	// beyond MaxAccessLists.
	PutAccessList(ctx context.Context, id string, list *accesslist.List) error
	// AccessLists returns the lists of the image snapshot with that ID, by image and platform: none if it is missing.
	AccessLists(ctx context.Context, id string) ([]*accesslist.List, error)
	// AccessListsOn are those of an image, by its normalised reference, that image snapshots have whose content is the
	// disk with that index digest. ids are all of those image snapshots, whether they have any or not.
	AccessListsOn(ctx context.Context, disk digest.Digest, image string) (lists []*accesslist.List, ids []string, err error)
}

// Filter chooses objects; empty fields choose all.
type Filter struct {
	ID string
	// Owner, if not nil, is the one owner.
	Owner *string
	// ClientToken of a create.
	ClientToken string
	// Labels that the object must have, with these values.
	Labels map[string]string
	// After is a name: only those that come after it are listed, whether it is there or not.
	After string
	// Limit is how many are listed at most; 0 is all.
	Limit int
}

// Match says whether the filter lets s through, apart from Limit.
func (f Filter) Match(s *imagesnapshot.ImageSnapshot) bool {
	if f.ID != "" && f.ID != s.ID || f.Owner != nil && *f.Owner != s.Owner || f.ClientToken != "" && f.ClientToken != s.ClientToken || s.Name <= f.After && f.After != "" {
		return false
	}
	for k := range maps.Keys(f.Labels) {
		if v, ok := s.Labels[k]; !ok || v != f.Labels[k] {
			return false
		}
	}
	return true
}
