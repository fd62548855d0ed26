package lifecycle_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store/boltstore"
)

// world is everything outside the engine, which outlives it.
type world struct {
	*testing.T
	fake    *blockdevtest.Fake
	builder *recorder
	path    string
	cfg     lifecycle.Config
	ready   time.Duration
	flash   bool
	// shape, if not nil, makes of the backend what a test wants.
	shape func(lifecycle.Backend) lifecycle.Backend
	// others are storage that builds do not use.
	others map[string]lifecycle.Backend

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
		w.cfg = lifecycle.Config{Builder: w.builder, Limits: imagesnapshottest.Limits()}
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
	cfg.Store, cfg.Watcher, cfg.Indexes, cfg.AccessLists = gated, w.store, gated, w.store
	b := patient(s)
	if w.flash {
		b.Flash = s
	}
	if w.shape != nil {
		b = w.shape(b)
	}
	cfg.Backends = map[string]lifecycle.Backend{cfg.Driver: b}
	maps.Copy(cfg.Backends, w.others)
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
		for _, v := range s.Status.VolumeSnapshots {
			ids = append(ids, v.ID)
		}
		if d := s.Status.Identity.IndexDigest; !slices.Contains(digests, d) {
			digests = append(digests, d)
		}
	}
	list, err := w.fake.ListVolumeSnapshots(w.Context())
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
	for _, snap := range s.Status.VolumeSnapshots {
		v, err := w.fake.CreateVolume(w.Context(), blockdev.CreateVolumeRequest{Name: "look", SourceVolumeSnapshotID: snap.ID})
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
