// Package boltstore keeps image snapshots in one file, for a machine without Kubernetes. The file belongs to one
// process at a time.
//
//	meta      format, installation
//	objects   name -> JSON
//	indexes   digest -> encoded index
//	accesslists   ID, image and platform -> encoded access list
//
// All objects are in memory too, about 5 KB each: lists and look-ups read no file and wait for no writer.
package boltstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

const (
	bucketMeta    = "meta"
	bucketObjects = "objects"
	bucketIndexes = "indexes"
	// bucketAccessLists was added later; an older berth leaves it alone.
	bucketAccessLists = "accesslists"

	keyFormat       = "format"
	keyInstallation = "installation"

	format = "1"
	// lockWait is how long Open waits for another process, which is stopping, to unlock the file.
	lockWait = 3 * time.Second
)

// Store implements store.Store, store.Watcher, store.Indexes and store.AccessLists.
type Store struct {
	db           *bolt.DB
	installation string
	objects      *objects
}

// objects are all image snapshots, in the file and in memory.
type objects struct {
	db *bolt.DB
	// mu guards what follows, and makes the order of changes in memory that of the file.
	mu       sync.RWMutex
	byName   map[string]*imagesnapshot.ImageSnapshot
	names    map[string]string // by ID
	sorted   names             // of all
	owned    map[string]*names // by owner
	watchers map[*watcher]struct{}
	closed   bool
}

var (
	_ store.Store       = (*Store)(nil)
	_ store.Watcher     = (*Store)(nil)
	_ store.Indexes     = (*Store)(nil)
	_ store.AccessLists = (*Store)(nil)
)

// Open opens the file at path, or makes it. One that another process has open is Unavailable, one of another format
// FailedPrecondition, one with something unreadable in it DataLoss.
func Open(path string) (*Store, error) {
	s, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open image snapshot store %s: %w", path, err)
	}
	return s, nil
}

func open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("another process has it open: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	s := &Store{db: db, objects: &objects{
		db: db, byName: make(map[string]*imagesnapshot.ImageSnapshot), names: make(map[string]string), owned: make(map[string]*names),
		watchers: make(map[*watcher]struct{}),
	}}
	err = db.Update(func(tx *bolt.Tx) (err error) {
		if s.installation, err = prepare(tx); err != nil {
			return err
		}
		return s.objects.load(tx)
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// prepare creates what is missing in the file, and returns its installation.
func prepare(tx *bolt.Tx) (installation string, err error) {
	meta, err := tx.CreateBucketIfNotExists([]byte(bucketMeta))
	if err != nil {
		return "", err
	}
	switch have := string(meta.Get([]byte(keyFormat))); have {
	case "":
		installation = uuid.NewString()
		if err := errors.Join(meta.Put([]byte(keyFormat), []byte(format)), meta.Put([]byte(keyInstallation), []byte(installation))); err != nil {
			return "", err
		}
	case format:
		installation = string(meta.Get([]byte(keyInstallation)))
	default:
		return "", fmt.Errorf("its format is %q, this berth knows %q: use the berth that wrote it: %w", have, format, errdefs.ErrFailedPrecondition)
	}
	for _, name := range []string{bucketObjects, bucketIndexes, bucketAccessLists} {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return "", err
		}
	}
	return installation, nil
}

func (o *objects) load(tx *bolt.Tx) error {
	return tx.Bucket([]byte(bucketObjects)).ForEach(func(k, v []byte) error {
		obj := new(imagesnapshot.ImageSnapshot)
		if err := json.Unmarshal(v, obj); err != nil {
			return fmt.Errorf("read object %q: %w: %w", k, err, errdefs.ErrDataLoss)
		}
		o.add(obj)
		return nil
	})
}

// Installation is a UUID that was drawn when the file was made.
func (s *Store) Installation() string { return s.installation }

// Close ends all watches and lets go of the file.
func (s *Store) Close() error {
	s.objects.close()
	return s.db.Close()
}

func (o *objects) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for w := range o.watchers {
		w.stop()
	}
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, obj *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error) {
	created := obj.Clone()
	err := s.objects.write(ctx, func() (change, error) {
		switch {
		case obj.Name == "" || obj.ID == "":
			return change{}, fmt.Errorf("it has no name or no ID: %w", errdefs.ErrInvalidArgument)
		case obj.ResourceVersion != "":
			return change{}, fmt.Errorf("it has resource version %s already: %w", obj.ResourceVersion, errdefs.ErrInvalidArgument)
		case s.objects.byName[obj.Name] != nil:
			return change{}, fmt.Errorf("the name is taken: %w", errdefs.ErrAlreadyExists)
		case s.objects.names[obj.ID] != "":
			return change{}, fmt.Errorf("ID %s belongs to %s: %w", obj.ID, s.objects.names[obj.ID], errdefs.ErrAlreadyExists)
		}
		return change{object: created}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("create image snapshot %s: %w", obj.Name, err)
	}
	return created.Clone(), nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, name string) (*imagesnapshot.ImageSnapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.objects.mu.RLock()
	defer s.objects.mu.RUnlock()
	obj := s.objects.byName[name]
	if obj == nil {
		return nil, fmt.Errorf("image snapshot %s: %w", name, errdefs.ErrNotFound)
	}
	return obj.Clone(), nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, f store.Filter) ([]*imagesnapshot.ImageSnapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.objects.mu.RLock()
	defer s.objects.mu.RUnlock()
	var list []*imagesnapshot.ImageSnapshot
	for _, name := range s.objects.candidates(f) {
		if obj := s.objects.byName[name]; f.Match(obj) {
			list = append(list, obj.Clone())
		}
		if f.Limit > 0 && len(list) == f.Limit {
			break
		}
	}
	return list, nil
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, obj *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error) {
	updated := obj.Clone()
	err := s.objects.write(ctx, func() (change, error) {
		if err := s.objects.current(obj.Name, obj.ResourceVersion); err != nil {
			return change{}, err
		}
		if have := s.objects.byName[obj.Name]; have.ID != obj.ID {
			return change{}, fmt.Errorf("its ID is %s, not %s: %w", have.ID, obj.ID, errdefs.ErrConflict)
		}
		return change{object: updated}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("update image snapshot %s: %w", obj.Name, err)
	}
	return updated.Clone(), nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name, resourceVersion string) error {
	err := s.objects.write(ctx, func() (change, error) {
		if err := s.objects.current(name, resourceVersion); err != nil {
			return change{}, err
		}
		return change{object: s.objects.byName[name], deleted: true}, nil
	})
	if err != nil {
		return fmt.Errorf("delete image snapshot %s: %w", name, err)
	}
	return nil
}

// current checks that the object is still at a version.
func (o *objects) current(name, version string) error {
	have := o.byName[name]
	if have == nil {
		return errdefs.ErrNotFound
	}
	if have.ResourceVersion != version {
		return fmt.Errorf("it is at resource version %s, not %q: read it again: %w", have.ResourceVersion, version, errdefs.ErrConflict)
	}
	return nil
}

// change is one write.
type change struct {
	object  *imagesnapshot.ImageSnapshot
	deleted bool
}

// write asks prepare, under the lock, what to write, writes it, and tells the watchers. prepare's object becomes the
// store's.
func (o *objects) write(ctx context.Context, prepare func() (change, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	c, err := prepare()
	if err != nil {
		return err
	}
	obj := c.object
	err = o.db.Update(func(tx *bolt.Tx) error {
		objects := tx.Bucket([]byte(bucketObjects))
		version, err := objects.NextSequence()
		if err != nil {
			return err
		}
		if c.deleted {
			return errors.Join(objects.Delete([]byte(obj.Name)), deleteAccessLists(tx, obj.ID))
		}
		obj.ResourceVersion = strconv.FormatUint(version, 10)
		encoded, err := json.Marshal(obj)
		if err != nil {
			return err
		}
		return objects.Put([]byte(obj.Name), encoded)
	})
	if err != nil {
		return err
	}
	if c.deleted {
		o.remove(obj)
	} else {
		o.add(obj)
	}
	for w := range o.watchers {
		w.tell(store.Change{Object: obj, Deleted: c.deleted})
	}
	return nil
}

// PutIndex implements store.Indexes.
func (s *Store) PutIndex(ctx context.Context, d digest.Digest, encoded []byte) error {
	if got := digest.SHA256.FromBytes(encoded); got != d {
		return fmt.Errorf("keep index %s: its digest is %s: %w", d, got, errdefs.ErrInvalidArgument)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketIndexes)).Put([]byte(d), encoded) })
	if err != nil {
		return fmt.Errorf("keep index %s: %w", d, err)
	}
	return nil
}

// GetIndex implements store.Indexes.
func (s *Store) GetIndex(ctx context.Context, d digest.Digest) (encoded []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		// What bolt returns is valid only in the transaction.
		encoded = slices.Clone(tx.Bucket([]byte(bucketIndexes)).Get([]byte(d)))
		return nil
	})
	if err == nil && encoded == nil {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", d, err)
	}
	return encoded, nil
}

// DeleteIndex implements store.Indexes.
func (s *Store) DeleteIndex(ctx context.Context, d digest.Digest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketIndexes)).Delete([]byte(d)) }); err != nil {
		return fmt.Errorf("delete index %s: %w", d, err)
	}
	return nil
}

// ListIndexes implements store.Indexes.
func (s *Store) ListIndexes(ctx context.Context) (list []digest.Digest, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucketIndexes)).ForEach(func(k, _ []byte) error {
			list = append(list, digest.Digest(k))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list indexes: %w", err)
	}
	return list, nil
}
