package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/readahead/accesslist"
)

// accessListPrefix returns the prefix of the keys of all lists of an image snapshot. No ID, reference or platform has a
// NUL.
func accessListPrefix(id string) []byte { return append([]byte(id), 0) }

func accessListKey(id string, l *accesslist.List) []byte {
	return append(accessListPrefix(id), l.Image+"\x00"+l.Platform...)
}

// PutAccessList implements store.AccessLists.
func (s *Store) PutAccessList(ctx context.Context, id string, list *accesslist.List) error {
	encoded, err := list.Encode()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = s.objects.putAccessList(id, accessListKey(id, list), encoded)
	}
	if err != nil {
		return fmt.Errorf("keep access list of image snapshot %s: %w", id, err)
	}
	return nil
}

func (o *objects) putAccessList(id string, key, encoded []byte) error {
	// Held until it is written, or the image snapshot could be deleted in between.
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.names[id] == "" {
		return errdefs.ErrNotFound
	}
	return o.db.Update(func(tx *bolt.Tx) error {
		bucket := tx.Bucket([]byte(bucketAccessLists))
		if bucket.Get(key) == nil {
			count := 0
			eachAccessList(bucket, id, func(_, _ []byte) { count++ })
			if count >= store.MaxAccessLists {
				return fmt.Errorf("it has %d, as many as it can have: %w", count, errdefs.ErrResourceExhausted)
			}
		}
		return bucket.Put(key, encoded)
	})
}

// AccessLists implements store.AccessLists.
func (s *Store) AccessLists(ctx context.Context, id string) ([]*accesslist.List, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var lists []*accesslist.List
	err := s.db.View(func(tx *bolt.Tx) (err error) {
		eachAccessList(tx.Bucket([]byte(bucketAccessLists)), id, func(_, encoded []byte) {
			list, decodeErr := accesslist.Decode(encoded)
			if decodeErr != nil {
				err = fmt.Errorf("%w: %w", decodeErr, errdefs.ErrDataLoss)
				return
			}
			lists = append(lists, list)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("access lists of image snapshot %s: %w", id, err)
	}
	return lists, nil
}

// AccessListsOn implements store.AccessLists.
func (s *Store) AccessListsOn(ctx context.Context, disk digest.Digest, image string) (lists []*accesslist.List, ids []string, err error) {
	ids = s.objects.having(disk)
	for _, id := range ids {
		of, err := s.AccessLists(ctx, id)
		if err != nil {
			return nil, ids, err
		}
		lists = append(lists, slices.DeleteFunc(of, func(l *accesslist.List) bool { return l.Image != image })...)
	}
	return lists, ids, nil
}

// having returns the IDs of the image snapshots whose content is the disk with that index digest.
func (o *objects) having(disk digest.Digest) (ids []string) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, obj := range o.byName {
		if obj.Status.Identity.IndexDigest == disk {
			ids = append(ids, obj.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// eachAccessList calls each for the access lists of one image snapshot, in the order of their keys.
func eachAccessList(bucket *bolt.Bucket, id string, each func(key, encoded []byte)) {
	prefix := accessListPrefix(id)
	cursor := bucket.Cursor()
	for k, v := cursor.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = cursor.Next() {
		each(k, v)
	}
}

// deleteAccessLists goes with the deletion of an image snapshot.
func deleteAccessLists(tx *bolt.Tx, id string) error {
	bucket := tx.Bucket([]byte(bucketAccessLists))
	var keys [][]byte // a bucket must not change under its cursor
	eachAccessList(bucket, id, func(key, _ []byte) { keys = append(keys, bytes.Clone(key)) })
	for _, key := range keys {
		if err := bucket.Delete(key); err != nil {
			return err
		}
	}
	return nil
}
