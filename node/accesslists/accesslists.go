// Package accesslists finds the access lists of a node in the places where they may be, and keeps new ones.
package accesslists

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/firststart"
	"berth.dev/berth/readahead/liststore"
)

// Places are where lists may be, in the order of the search: with an image snapshot of the same disk, in the node's own
// directory, and beside the catalog.
type Places struct {
	// ImageSnapshots is nil if this node keeps none.
	ImageSnapshots store.AccessLists
	Directory      *liststore.Dir
	// Catalog is nil if the node has no catalog.
	Catalog *liststore.Dir
}

var (
	_ readahead.Lists  = Places{}
	_ firststart.Lists = Places{}
)

// AccessList finds the list for an image on a disk.
func (p Places) AccessList(ctx context.Context, d readahead.Disk, image string) (*accesslist.List, error) {
	return p.find(ctx, d.Identity, image)
}

func (p Places) find(ctx context.Context, disk layerdisk.Identity, image string) (*accesslist.List, error) {
	if p.ImageSnapshots != nil {
		kept, _, err := p.ImageSnapshots.AccessListsOn(ctx, disk.IndexDigest, image)
		if err != nil {
			log.G(ctx).WithError(err).Warn("access lists of image snapshots cannot be used")
		}
		if len(kept) > 0 {
			return kept[0], nil
		}
	}
	l, err := choose(ctx, p.Directory, disk, image)
	if errdefs.IsNotFound(err) && p.Catalog != nil {
		return choose(ctx, p.Catalog, disk, image)
	}
	return l, err
}

// choose picks a list of the image from a directory.
func choose(ctx context.Context, from *liststore.Dir, disk layerdisk.Identity, image string) (*accesslist.List, error) {
	lists, problems, err := from.Lists(ctx, image)
	if problems != nil {
		log.G(ctx).WithError(problems).Warn("some access lists cannot be used")
	}
	if err != nil {
		return nil, err
	}
	for _, l := range lists {
		// Of several lists, the one of the same disk knows most.
		if l.Disk == disk.IndexDigest {
			return l, nil
		}
	}
	return lists[0], nil
}

// Has reports whether there is a list for an image on a disk.
func (p Places) Has(ctx context.Context, d readahead.Disk, image string) (bool, error) {
	_, err := p.find(ctx, d.Identity, image)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Keep keeps a new list with the image snapshots of this node that have the disk, or else in the node's own directory.
func (p Places) Keep(ctx context.Context, d readahead.Disk, l *accesslist.List) error {
	if p.ImageSnapshots != nil {
		_, ids, err := p.ImageSnapshots.AccessListsOn(ctx, d.Identity.IndexDigest, l.Image)
		for _, id := range ids {
			err = errors.Join(err, p.ImageSnapshots.PutAccessList(ctx, id, l))
		}
		if len(ids) > 0 && err == nil {
			return nil
		}
	}
	return p.Directory.Put(l)
}
