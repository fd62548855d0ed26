package lifecycle_test

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/imagesnapshot/store/boltstore"
)

// errDead is what everything answers after the process was "killed".
var errDead = errors.New("the process is dead")

// gate stands before everything outside the engine's memory, and can kill the process there.
type gate struct {
	mu    sync.Mutex
	count int
	// at is the number of the call at which to die, before it is done or after; 0 is never.
	at    int
	after bool
	dead  bool
	died  chan struct{}
}

func (g *gate) pass(do func() error) error {
	g.mu.Lock()
	g.count++
	now := g.count == g.at
	if now && !g.after {
		g.die()
	}
	dead := g.dead
	g.mu.Unlock()
	if dead {
		return errDead
	}
	err := do()
	if now {
		g.mu.Lock()
		g.die()
		g.mu.Unlock()
		return errDead
	}
	return err
}

// calls that were made so far.
func (g *gate) calls() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count
}

// die is called with mu held.
func (g *gate) die() {
	if !g.dead {
		g.dead = true
		close(g.died)
	}
}

func through[T any](g *gate, do func() (T, error)) (out T, err error) {
	err = g.pass(func() error {
		out, err = do()
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

// scale makes a GiB of the specs 64 KiB of the fake.
const scale = 1 << 14

// storage is a fake driver behind a gate.
type storage struct {
	*gate
	fake *blockdevtest.Fake
	// ready is how long a volume snapshot takes to be complete.
	ready time.Duration
}

func (s storage) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	return through(s.gate, func() (blockdev.Volume, error) {
		req.SizeBytes /= scale
		v, err := s.fake.CreateVolume(ctx, req)
		v.SizeBytes *= scale
		return v, err
	})
}

func (s storage) DeleteVolume(ctx context.Context, id string) error {
	return s.pass(func() error { return s.fake.DeleteVolume(ctx, id) })
}

func (s storage) GetVolume(ctx context.Context, id string) (blockdev.Volume, error) {
	return through(s.gate, func() (blockdev.Volume, error) { return s.fake.GetVolume(ctx, id) })
}

func (s storage) ListVolumes(ctx context.Context) ([]blockdev.Volume, error) {
	return through(s.gate, func() ([]blockdev.Volume, error) { return s.fake.ListVolumes(ctx) })
}

func (s storage) Properties() blockdev.Properties { return s.fake.Properties() }

func (s storage) Attach(ctx context.Context, id string, o blockdev.AttachOptions) (blockdev.Device, error) {
	return through(s.gate, func() (blockdev.Device, error) { return s.fake.Attach(ctx, id, o) })
}

func (s storage) Detach(ctx context.Context, id string) error {
	return s.pass(func() error { return s.fake.Detach(ctx, id) })
}

func (s storage) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	return through(s.gate, func() (map[string]blockdev.Device, error) { return s.fake.Attached(ctx) })
}

func (s storage) late(v blockdev.VolumeSnapshot, err error) (blockdev.VolumeSnapshot, error) {
	v.ReadyToUse = v.ReadyToUse && time.Since(v.Created) >= s.ready
	v.SizeBytes *= scale
	return v, err
}

func (s storage) CreateVolumeSnapshot(ctx context.Context, name, volume string) (blockdev.VolumeSnapshot, error) {
	return through(s.gate, func() (blockdev.VolumeSnapshot, error) { return s.late(s.fake.CreateVolumeSnapshot(ctx, name, volume)) })
}

func (s storage) DeleteVolumeSnapshot(ctx context.Context, id string) error {
	return s.pass(func() error { return s.fake.DeleteVolumeSnapshot(ctx, id) })
}

func (s storage) GetVolumeSnapshot(ctx context.Context, id string) (blockdev.VolumeSnapshot, error) {
	return through(s.gate, func() (blockdev.VolumeSnapshot, error) { return s.late(s.fake.GetVolumeSnapshot(ctx, id)) })
}

func (s storage) ListVolumeSnapshots(ctx context.Context) ([]blockdev.VolumeSnapshot, error) {
	return through(s.gate, func() ([]blockdev.VolumeSnapshot, error) { return s.fake.ListVolumeSnapshots(ctx) })
}

// CreateFlashVolumeSnapshot is ready at once.
func (s storage) CreateFlashVolumeSnapshot(ctx context.Context, name, volume string) (blockdev.VolumeSnapshot, error) {
	return through(s.gate, func() (blockdev.VolumeSnapshot, error) { return s.fake.CreateVolumeSnapshot(ctx, name, volume) })
}

// gatedStore is a store behind a gate.
type gatedStore struct {
	*boltstore.Store
	g *gate
}

func (s gatedStore) Create(ctx context.Context, o *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error) {
	return through(s.g, func() (*imagesnapshot.ImageSnapshot, error) { return s.Store.Create(ctx, o) })
}

func (s gatedStore) Update(ctx context.Context, o *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error) {
	return through(s.g, func() (*imagesnapshot.ImageSnapshot, error) { return s.Store.Update(ctx, o) })
}

func (s gatedStore) Delete(ctx context.Context, name, version string) error {
	return s.g.pass(func() error { return s.Store.Delete(ctx, name, version) })
}

func (s gatedStore) PutIndex(ctx context.Context, d digest.Digest, b []byte) error {
	return s.g.pass(func() error { return s.Store.PutIndex(ctx, d, b) })
}

func (s gatedStore) DeleteIndex(ctx context.Context, d digest.Digest) error {
	return s.g.pass(func() error { return s.Store.DeleteIndex(ctx, d) })
}

var _ store.Store = gatedStore{}
