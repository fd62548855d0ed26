package lifecycle

import (
	"context"
	"fmt"
	"path/filepath"
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
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/imagesnapshot/store/boltstore"
)

// parts are what quotas, sweeps and matches need, and nothing else of an engine.
type parts struct {
	*testing.T
	store *boltstore.Store
}

func newParts(t *testing.T) parts {
	t.Helper()
	s, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return parts{t, s}
}

func (p parts) put(name string, change func(*imagesnapshot.ImageSnapshot)) *imagesnapshot.ImageSnapshot {
	p.Helper()
	s := &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Name: name, ID: "id-" + name, Owner: "ann", Created: time.Now().UTC()}}
	s.Status.Phase = imagesnapshot.PhaseAvailable
	if change != nil {
		change(s)
	}
	s, err := p.store.Create(p.Context(), s)
	require.NoError(p, err)
	return s
}

func (p parts) get(name string) *imagesnapshot.ImageSnapshot {
	p.Helper()
	s, err := p.store.Get(p.Context(), name)
	require.NoError(p, err)
	return s
}

func lru(s *imagesnapshot.ImageSnapshot) { s.Spec.Elimination = imagesnapshot.EliminationLRU }

// failingStore refuses writes while it is told to.
type failingStore struct {
	store.Store
	mu  sync.Mutex
	err error
}

func (s *failingStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *failingStore) Update(ctx context.Context, o *imagesnapshot.ImageSnapshot) (*imagesnapshot.ImageSnapshot, error) {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.Store.Update(ctx, o)
}

// However many ask at once, no more are admitted than there is room for, and one that exists already needs none.
func TestQuotasAdmit(t *testing.T) {
	p := newParts(t)
	q := &quotas{objects: objects{p.store}, limits: imagesnapshot.Limits{MaxPerOwner: 3}}
	none := func() (*imagesnapshot.ImageSnapshot, error) { return nil, nil }
	errs := make(chan error, 10)
	for i := range cap(errs) {
		go func() {
			s := &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Name: fmt.Sprint("n", i), ID: fmt.Sprint(i), Owner: "ann"}}
			_, _, err := q.admit(t.Context(), s, none, func() (*imagesnapshot.ImageSnapshot, error) { return p.store.Create(t.Context(), s) })
			errs <- err
		}()
	}
	admitted := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			admitted++
		} else {
			require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
		}
	}
	require.Equal(t, 3, admitted)

	have := &imagesnapshot.ImageSnapshot{}
	got, found, err := q.admit(t.Context(), &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Owner: "ann"}},
		func() (*imagesnapshot.ImageSnapshot, error) { return have, nil },
		func() (*imagesnapshot.ImageSnapshot, error) { panic("nothing is added") })
	require.NoError(t, err)
	require.True(t, found)
	require.Same(t, have, got)
}

// As many go as are too many, the least recently used first, and if they are not enough the refusal says so.
func TestQuotasMakeRoom(t *testing.T) {
	p := newParts(t)
	q := &quotas{objects: objects{p.store}, limits: imagesnapshot.Limits{MaxPerOwner: 2}}
	used := func(at int64) func(*imagesnapshot.ImageSnapshot) {
		return func(s *imagesnapshot.ImageSnapshot) {
			lru(s)
			s.Created, s.Status.LastMatched = time.Unix(1, 0).UTC(), time.Unix(at, 0).UTC()
		}
	}
	p.put("late", used(30))
	p.put("early", used(10))
	p.put("middle", used(20))
	p.put("others", func(s *imagesnapshot.ImageSnapshot) {
		used(1)(s)
		s.Owner = "bob"
	})
	begins := p.put("new", func(s *imagesnapshot.ImageSnapshot) { s.Status.Phase = imagesnapshot.PhasePending })
	require.NoError(t, q.makeRoom(t.Context(), begins))
	want := map[string]imagesnapshot.Phase{
		"early": imagesnapshot.PhaseDeleting, "middle": imagesnapshot.PhaseDeleting, "late": imagesnapshot.PhaseAvailable,
		"others": imagesnapshot.PhaseAvailable, "new": imagesnapshot.PhasePending,
	}
	for name, phase := range want {
		require.Equal(t, phase, p.get(name).Status.Phase, name)
	}
	require.Contains(t, p.get("early").Status.Message, "new")
	require.NoError(t, q.makeRoom(t.Context(), begins), "nothing more goes when it is repeated")
	require.Equal(t, imagesnapshot.PhaseAvailable, p.get("late").Status.Phase)

	q.limits.MaxPerOwner = 1
	p.put("kept", nil)
	require.True(t, errdefs.IsResourceExhausted(q.makeRoom(t.Context(), begins)))
}

// A match counts for the object that had the name then, and none is lost or counted twice when the store refuses.
func TestMatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParts(t)
		refusing := &failingStore{Store: p.store}
		m := newMatches(objects{refusing})
		s := p.put("one", nil)
		m.record("one", s.ID)
		time.Sleep(time.Hour)
		m.record("one", s.ID)
		now := time.Now().UTC()
		require.Equal(t, now, m.lastUse(s), "before it is written")
		m.record("gone", "id")

		refusing.fail(errdefs.ErrUnavailable)
		require.ErrorContains(t, m.flush(t.Context()), "record matches of image snapshot one")
		require.Zero(t, p.get("one").Status.MatchCount)
		m.record("one", s.ID)
		refusing.fail(nil)
		require.NoError(t, m.flush(t.Context()), "what is gone is no error")
		require.NoError(t, m.flush(t.Context()))
		require.EqualValues(t, 3, p.get("one").Status.MatchCount)
		require.Equal(t, now, p.get("one").Status.LastMatched)

		m.record("one", "another object")
		require.NoError(t, m.flush(t.Context()))
		require.EqualValues(t, 3, p.get("one").Status.MatchCount)
	})
}

const installation = "01234567-89ab-cdef-0123-456789abcdef"

// A sweep needs a store, names and storage. It deletes exactly what has a name of this installation and no owner, in
// each storage, and says of which image snapshots no volume snapshot is left.
func TestSweeper(t *testing.T) {
	p := newParts(t)
	n, err := newNames(installation)
	require.NoError(t, err)
	first, second := blockdevtest.NewFake(0), blockdevtest.NewFake(0)
	backendOf := func(f *blockdevtest.Fake) Backend { return Backend{Provisioner: f, Attacher: f, Snapshotter: f} }
	b := backends{all: map[string]Backend{"first": backendOf(first), "second": backendOf(second)}, builds: "first", legacy: "second"}
	w := &sweeper{objects: objects{p.store}, backends: b, names: n, disposal: disposal{b}, indexes: &indexes{kept: p.store, objects: p.store, contents: newContents()}}

	owned := &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{ID: "00000000-0000-0000-0000-000000000001"}}
	orphan := &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{ID: "00000000-0000-0000-0000-000000000002"}}
	volume := func(f *blockdevtest.Fake, name string) string {
		v, err := f.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: 4096})
		require.NoError(t, err)
		return v.ID
	}
	journalled := volume(first, n.volume(owned, 1))
	orphans := []string{volume(first, n.volume(orphan, 1)), volume(second, n.volume(orphan, 2))}
	foreign := volume(second, "berth-ffffffffffff-v-00000000000000000000000000000002-1")
	p.put("work", func(s *imagesnapshot.ImageSnapshot) {
		s.ID, s.Status.Phase = owned.ID, imagesnapshot.PhaseCreating
		s.Status.Work = &imagesnapshot.Work{Driver: "first", VolumeName: n.volume(owned, 1)}
	})
	p.put("lost", func(s *imagesnapshot.ImageSnapshot) {
		s.Status.VolumeSnapshots = []imagesnapshot.VolumeSnapshot{{ID: "nobody has it"}}
		s.Status.LastUpdated = time.Now().Add(-time.Hour)
	})
	p.put("fresh", func(s *imagesnapshot.ImageSnapshot) {
		s.Status.VolumeSnapshots = []imagesnapshot.VolumeSnapshot{{ID: "not known everywhere yet"}}
		s.Status.LastUpdated = time.Now()
	})
	index := []byte("index")
	require.NoError(t, p.store.PutIndex(t.Context(), digest.FromBytes(index), index))

	report, err := w.sweep(t.Context(), false, true)
	require.NoError(t, err)
	require.Len(t, report.Orphans, 2)
	require.Empty(t, report.Deleted)
	require.Equal(t, []string{"lost"}, report.Lost)
	require.Equal(t, imagesnapshot.PhaseUnavailable, p.get("lost").Status.Phase)
	require.Equal(t, imagesnapshot.PhaseAvailable, p.get("fresh").Status.Phase)
	kept, err := p.store.ListIndexes(t.Context())
	require.NoError(t, err)
	require.Empty(t, kept)

	report, err = w.sweep(t.Context(), true, true)
	require.NoError(t, err)
	require.Len(t, report.Deleted, 2)
	require.Empty(t, report.Lost, "once")
	for i, f := range []*blockdevtest.Fake{first, second} {
		_, err = f.GetVolume(t.Context(), orphans[i])
		require.True(t, errdefs.IsNotFound(err), "%v", err)
	}
	_, err = first.GetVolume(t.Context(), journalled)
	require.NoError(t, err)
	_, err = second.GetVolume(t.Context(), foreign)
	require.NoError(t, err)
}

// What may be done only when it is journalled is done after the write, on the object as the store has it, and nothing
// of it is done if the write fails.
func TestRestOfAStepComesAfterTheWrite(t *testing.T) {
	p := newParts(t)
	refusing := &failingStore{Store: p.store}
	p.put("one", func(s *imagesnapshot.ImageSnapshot) {
		s.Status.Phase, s.Status.Work = imagesnapshot.PhaseCreating, &imagesnapshot.Work{Step: "first"}
	})
	done := 0
	r := &reconciler{store: refusing, backends: backends{all: map[string]Backend{"": {}}}, observer: noObserver{}}
	r.steps = map[imagesnapshot.Step]step{"first": func(_ context.Context, j *job) (decision, error) {
		j.work().Building = true
		d := write()
		d.then = func(_ context.Context, j *job) (decision, error) {
			done++
			require.True(t, p.get("one").Status.Work.Building)
			require.Equal(t, p.get("one").ResourceVersion, j.object.ResourceVersion)
			return wait(whenChanged()), nil
		}
		return d, nil
	}}
	refusing.fail(errdefs.ErrUnavailable)
	_, err := r.advance(t.Context(), &job{object: p.get("one")})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.Zero(t, done)
	refusing.fail(nil)
	n, err := r.advance(t.Context(), &job{object: p.get("one")})
	require.NoError(t, err)
	require.Equal(t, whenChanged(), n)
	require.Equal(t, 1, done)
}
