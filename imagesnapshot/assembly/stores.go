package assembly

import (
	"io"

	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/imagesnapshot/store/boltstore"
)

// Stores keep everything about image snapshots.
type Stores struct {
	Objects store.Store
	Watcher store.Watcher
	Indexes store.Indexes
	// AccessLists are published with the image snapshots that they belong to.
	AccessLists store.AccessLists
	// Installation is a UUID that tells the volumes and volume snapshots of this store from those of others on the same
	// storage. It never changes.
	Installation string
	// Closer, if not nil, closes all of them.
	Closer io.Closer
}

// OpenFile opens the embedded store in the file at path, or makes it. Errors are those of boltstore.Open.
func OpenFile(path string) (Stores, error) {
	s, err := boltstore.Open(path)
	if err != nil {
		return Stores{}, err
	}
	return Stores{Objects: s, Watcher: s, Indexes: s, AccessLists: s, Installation: s.Installation(), Closer: s}, nil
}
