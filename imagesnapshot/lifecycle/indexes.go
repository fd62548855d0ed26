package lifecycle

import (
	"context"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// indexes are those of the disks that image snapshots refer to.
type indexes struct {
	kept    store.Indexes
	objects store.Store
	// mu keeps an index from being dropped between its being kept and its being referred to.
	mu sync.Mutex
	// contents of disks that are known from them.
	contents *contents
}

// keep keeps an index, and then writes what refers to it.
func (x *indexes) keep(ctx context.Context, encoded []byte, write func() error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.kept.PutIndex(ctx, digest.FromBytes(encoded), encoded); err != nil {
		return err
	}
	return write()
}

// dropUnused forgets the indexes that no image snapshot refers to.
func (x *indexes) dropUnused(ctx context.Context) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	kept, err := x.kept.ListIndexes(ctx)
	if err != nil {
		return err
	}
	all, err := x.objects.List(ctx, store.Filter{})
	if err != nil {
		return err
	}
	wanted := make(map[digest.Digest]bool)
	for _, s := range all {
		wanted[s.Status.Identity.IndexDigest] = true
		if w := s.Status.Work; w != nil {
			for _, c := range []*imagesnapshot.Content{w.Built, w.Previous} {
				if c != nil {
					wanted[c.Identity.IndexDigest] = true
				}
			}
		}
	}
	x.contents.forget(wanted)
	for _, d := range kept {
		if !wanted[d] {
			err = errors.Join(err, x.kept.DeleteIndex(ctx, d))
		}
	}
	return err
}
