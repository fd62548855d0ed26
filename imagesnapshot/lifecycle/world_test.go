package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
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
		g.dead = true
		close(g.died)
	}
	dead := g.dead
	g.mu.Unlock()
	if dead {
		return errDead
	}
	err := do()
	if now {
		g.mu.Lock()
		g.dead = true
		close(g.died)
		g.mu.Unlock()
		return errDead
	}
	return err
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

func (s storage) CreateSnapshot(ctx context.Context, name, volume string) (blockdev.VolumeSnapshot, error) {
	return through(s.gate, func() (blockdev.VolumeSnapshot, error) { return s.late(s.fake.CreateSnapshot(ctx, name, volume)) })
}

func (s storage) DeleteSnapshot(ctx context.Context, id string) error {
	return s.pass(func() error { return s.fake.DeleteSnapshot(ctx, id) })
}

func (s storage) GetSnapshot(ctx context.Context, id string) (blockdev.VolumeSnapshot, error) {
	return through(s.gate, func() (blockdev.VolumeSnapshot, error) { return s.late(s.fake.GetSnapshot(ctx, id)) })
}

func (s storage) ListSnapshots(ctx context.Context) ([]blockdev.VolumeSnapshot, error) {
	return through(s.gate, func() ([]blockdev.VolumeSnapshot, error) { return s.fake.ListSnapshots(ctx) })
}

// CreateFlashSnapshot is ready at once.
func (s storage) CreateFlashSnapshot(ctx context.Context, name, volume string) (blockdev.VolumeSnapshot, error) {
	return through(s.gate, func() (blockdev.VolumeSnapshot, error) { return s.fake.CreateSnapshot(ctx, name, volume) })
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

// recorder is a Builder that knows images of made-up layers and writes their index to the device.
type recorder struct {
	g    *gate
	fake *blockdevtest.Fake

	mu sync.Mutex
	// layers of each reference; one that is not here is not found.
	layers map[string][]string
	// takes is how long a build takes, err what it ends with.
	takes time.Duration
	err   error
	// errs are for the next builds, one each, before err.
	errs   []error
	builds []lifecycle.BuildRequest
	plans  int
	// running and most count builds at once.
	running, most int
}

// set how long builds take, 0 to leave that, and what they end with.
func (r *recorder) set(takes time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if takes > 0 {
		r.takes = takes
	}
	r.err = err
}

func (r *recorder) index(spec imagesnapshot.Spec) (*layerdisk.Index, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var images []layerdisktest.Image
	for _, ref := range spec.Images {
		layers, ok := r.layers[ref]
		if !ok {
			return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
		}
		images = append(images, layerdisktest.Image{Reference: ref, Layers: layers})
	}
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, images...)
	for i := range ix.Layers {
		ix.Layers[i].UnpackedBytes = 1 << 30
	}
	return ix, nil
}

func (r *recorder) Plan(_ context.Context, req lifecycle.PlanRequest) (lifecycle.Plan, error) {
	return through(r.g, func() (lifecycle.Plan, error) {
		ix, err := r.index(req.Spec)
		if err != nil {
			return lifecycle.Plan{}, err
		}
		r.mu.Lock()
		r.plans++
		r.mu.Unlock()
		var p lifecycle.Plan
		for _, l := range ix.Layers {
			p.Layers = append(p.Layers, lifecycle.PlannedLayer{DiffID: l.DiffID, BlobBytes: 5 << 30})
		}
		for _, c := range ix.Chains {
			p.Chains = append(p.Chains, c.ChainID)
		}
		return p, nil
	})
}

func (r *recorder) Build(ctx context.Context, req lifecycle.BuildRequest) (lifecycle.BuildResult, error) {
	return through(r.g, func() (lifecycle.BuildResult, error) { return r.build(ctx, req) })
}

func (r *recorder) build(ctx context.Context, req lifecycle.BuildRequest) (lifecycle.BuildResult, error) {
	r.mu.Lock()
	r.builds = append(r.builds, req)
	r.running++
	r.most = max(r.most, r.running)
	takes, fault := r.takes, r.err
	if len(r.errs) > 0 {
		fault, r.errs = r.errs[0], r.errs[1:]
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running--
	}()
	disk, err := r.fake.OpenDevice(req.Device, true)
	if err != nil {
		return lifecycle.BuildResult{}, err
	}
	old := make([]byte, 1)
	if _, err := disk.ReadAt(old, 0); err != nil {
		return lifecycle.BuildResult{}, err
	}
	// A dirty volume holds 'd', a disk 'D'.
	if old[0] != 0 && (!req.Reuse || old[0] != 'D') {
		return lifecycle.BuildResult{}, fmt.Errorf("device holds %q: %w", old, errdefs.ErrAlreadyExists)
	}
	if _, err := disk.WriteAt([]byte("d"), 0); err != nil {
		return lifecycle.BuildResult{}, err
	}
	const steps = 4
	for i := range steps {
		req.Progress(100 * (i + 1) / steps)
		select {
		case <-time.After(takes / steps):
		case <-ctx.Done():
			return lifecycle.BuildResult{}, ctx.Err()
		}
	}
	if fault != nil {
		return lifecycle.BuildResult{}, fault
	}
	ix, err := r.index(req.Spec)
	if err != nil {
		return lifecycle.BuildResult{}, err
	}
	encoded, err := layerdisk.Seal(ix)
	if err != nil {
		return lifecycle.BuildResult{}, err
	}
	if _, err := disk.WriteAt(append([]byte("D"), encoded...), 0); err != nil {
		return lifecycle.BuildResult{}, err
	}
	result := lifecycle.BuildResult{Index: encoded, DiskBytes: int64(len(encoded)), FetchedBytes: 1000}
	if req.Reuse {
		result.ReusedBytes = 500
	}
	return result, nil
}

// world is everything outside the engine, which outlives it.
type world struct {
	*testing.T
	fake    *blockdevtest.Fake
	builder *recorder
	path    string
	cfg     lifecycle.Config
	ready   time.Duration
	flash   bool

	gate   *gate
	store  *boltstore.Store
	engine *lifecycle.Engine
	stop   func()
}

const (
	refA  = "docker.io/library/a:1"
	refAB = "docker.io/library/ab:1"
	refC  = "docker.io/library/c:1"
)

// newWorld runs test in a bubble of its own time.
func newWorld(t *testing.T, test func(w *world), change ...func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fake := blockdevtest.NewFake(0)
		w := &world{T: t, fake: fake, path: filepath.Join(memoryDir(t), "store.db")}
		w.builder = &recorder{fake: fake, takes: time.Minute, layers: map[string][]string{
			refA: {"base", "a"}, refAB: {"base", "a", "b"}, refC: {"c1", "c2", "c3"},
		}}
		w.cfg = lifecycle.Config{Builder: w.builder, Limits: imagesnapshot.DefaultLimits()}
		for _, c := range change {
			c(w)
		}
		w.start(0, false)
		defer func() { w.stop() }()
		test(w)
	})
}

// memoryDir is where a store's syncs cost nothing.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "berth-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// start runs an engine that dies at a call, 0 for never.
func (w *world) start(dieAt int, after bool) {
	w.gate = &gate{at: dieAt, after: after, died: make(chan struct{})}
	w.builder.g = w.gate
	var err error
	w.store, err = boltstore.Open(w.path)
	require.NoError(w, err)
	s := storage{w.gate, w.fake, w.ready}
	cfg := w.cfg
	gated := gatedStore{w.store, w.gate}
	cfg.Store, cfg.Watcher, cfg.Indexes = gated, w.store, gated
	cfg.Provisioner, cfg.Attacher, cfg.Snapshotter = s, s, s
	if w.flash {
		cfg.Flash = s
	}
	cfg.Installation = w.store.Installation()
	w.engine, err = lifecycle.New(cfg)
	require.NoError(w, err)
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan error, 1)
	engine := w.engine
	go func() { ended <- engine.Run(ctx) }()
	w.stop = func() {
		cancel()
		require.NoError(w, <-ended)
		require.NoError(w, w.store.Close())
	}
}

func (w *world) restart() {
	w.stop()
	w.start(0, false)
}

func spec(images ...string) imagesnapshot.Spec { return imagesnapshot.Spec{Images: images} }

func (w *world) create(name string, s imagesnapshot.Spec) *imagesnapshot.ImageSnapshot {
	w.Helper()
	r, err := w.engine.Create(w.Context(), lifecycle.CreateRequest{Name: name, Spec: s})
	require.NoError(w, err)
	return r.Object
}

func (w *world) get(name string) *imagesnapshot.ImageSnapshot {
	w.Helper()
	s, err := w.store.Get(w.Context(), name)
	require.NoError(w, err)
	return s
}

// settle lets the engine do all that can be done by now plus d.
func (w *world) settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// await waits, in the bubble's time, for a phase with nothing under way.
func (w *world) await(name string, phase imagesnapshot.Phase) *imagesnapshot.ImageSnapshot {
	w.Helper()
	const most = 8 * 24 * time.Hour
	for waited := time.Duration(0); waited < most; {
		synctest.Wait()
		s := w.get(name)
		if s.Status.Phase == phase && s.Status.Work == nil {
			return s
		}
		step := time.Second
		if waited > time.Hour {
			step = time.Hour
		}
		time.Sleep(step)
		waited += step
	}
	s := w.get(name)
	require.FailNow(w, "no such phase", "%s is %s (%s), work %+v", name, s.Status.Phase, s.Status.Message, s.Status.Work)
	return nil
}

func (w *world) awaitGone(name string) {
	w.Helper()
	for range 600 {
		synctest.Wait()
		if _, err := w.store.Get(w.Context(), name); errdefs.IsNotFound(err) {
			return
		}
		time.Sleep(time.Second)
	}
	require.FailNow(w, "still there", name)
}

// requireStorage wants exactly the volume snapshots of these, no volume, and their indexes and no other.
func (w *world) requireStorage(want ...*imagesnapshot.ImageSnapshot) {
	w.Helper()
	synctest.Wait()
	var ids, got []string
	var digests []digest.Digest
	for _, s := range want {
		for _, v := range s.Status.Snapshots {
			ids = append(ids, v.ID)
		}
		if d := s.Status.Identity.IndexDigest; !slices.Contains(digests, d) {
			digests = append(digests, d)
		}
	}
	list, err := w.fake.ListSnapshots(w.Context())
	require.NoError(w, err)
	for _, v := range list {
		got = append(got, v.ID)
	}
	require.ElementsMatch(w, ids, got, "volume snapshots")
	volumes, err := w.fake.ListVolumes(w.Context())
	require.NoError(w, err)
	require.Empty(w, volumes, "volumes")
	kept, err := w.store.ListIndexes(w.Context())
	require.NoError(w, err)
	require.ElementsMatch(w, digests, kept, "indexes")
}

// requireContent wants the volume snapshot to hold the disk that the status tells of.
func (w *world) requireContent(s *imagesnapshot.ImageSnapshot) {
	w.Helper()
	encoded, err := w.store.GetIndex(w.Context(), s.Status.Identity.IndexDigest)
	require.NoError(w, err)
	for _, snap := range s.Status.Snapshots {
		v, err := w.fake.CreateVolume(w.Context(), blockdev.CreateVolumeRequest{Name: "look", SourceSnapshotID: snap.ID})
		require.NoError(w, err)
		dev, err := w.fake.Attach(w.Context(), v.ID, blockdev.AttachOptions{ReadOnly: true})
		require.NoError(w, err)
		disk, err := w.fake.OpenDevice(dev, false)
		require.NoError(w, err)
		got := make([]byte, len(encoded)+1)
		_, err = disk.ReadAt(got, 0)
		require.NoError(w, err)
		require.Equal(w, "D"+string(encoded), string(got))
		require.NoError(w, w.fake.Detach(w.Context(), v.ID))
		require.NoError(w, w.fake.DeleteVolume(w.Context(), v.ID))
	}
}

func reasons(s *imagesnapshot.ImageSnapshot) []imagesnapshot.Reason {
	var list []imagesnapshot.Reason
	for _, e := range s.Status.Events {
		list = append(list, e.Reason)
	}
	return list
}

var _ store.Store = gatedStore{}
