package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/retry"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// backendOf is a storage without a gate, for what is not to be broken off.
func backendOf(f *blockdevtest.Fake) lifecycle.Backend {
	return patient(storage{&gate{died: make(chan struct{})}, f, 0})
}

// patient is a storage as package drivers gives it: what it is too busy for is asked again.
func patient(s storage) lifecycle.Backend {
	d, ok := retry.Around(s).(interface {
		blockdev.Attacher
		blockdev.Provisioner
		blockdev.VolumeSnapshotter
	})
	if !ok {
		panic("a storage without its roles")
	}
	return lifecycle.Backend{Provisioner: d, Attacher: d, Snapshotter: d}
}

// requireEmpty wants nothing at all in a storage.
func requireEmpty(t *testing.T, f *blockdevtest.Fake) {
	t.Helper()
	volumes, err := f.ListVolumes(t.Context())
	require.NoError(t, err)
	require.Empty(t, volumes)
	snapshots, err := f.ListVolumeSnapshots(t.Context())
	require.NoError(t, err)
	require.Empty(t, snapshots)
}

// moveTo restarts the engine so that it builds in another storage, under the driver's name; the one of before is one of
// the others.
func (w *world) moveTo(driver string, f *blockdevtest.Fake) {
	w.stop()
	w.others = map[string]lifecycle.Backend{w.cfg.Driver: backendOf(w.fake)}
	w.cfg.Driver, w.fake, w.builder.fake = driver, f, f
	w.start(0, false)
}

func (w *world) delete(name string) {
	w.Helper()
	_, err := w.engine.Delete(w.Context(), lifecycle.DeleteRequest{NameOrID: name})
	require.NoError(w, err)
}

func named(driver string) func(*world) {
	return func(w *world) { w.cfg.Driver = driver }
}

// Another driver is configured: what is there stays where it is and usable, new builds go to the new one and take
// nothing over from the other's storage, an update moves, and what is deleted leaves both.
func TestDriverChanges(t *testing.T) {
	newWorld(t, func(w *world) {
		first, second := w.fake, blockdevtest.NewFake(0)
		w.create("one", spec(refA))
		one := w.await("one", imagesnapshot.PhaseAvailable)
		require.Equal(t, "first", one.Status.Driver)

		w.moveTo("second", second)
		sp := spec(refAB)
		sp.ReuseLayers = true
		w.create("two", sp)
		two := w.await("two", imagesnapshot.PhaseAvailable)
		require.Equal(t, "second", two.Status.Driver)
		require.Empty(t, two.Status.BaseName, "a volume of one storage cannot be made of a volume snapshot of another")
		require.NotContains(t, reasons(two), imagesnapshot.ReasonRetrying, "and is not tried")
		w.settle(15 * time.Minute)
		report, err := w.engine.Sweep(t.Context(), true)
		require.NoError(t, err)
		require.Equal(t, lifecycle.SweepReport{}, report)
		require.Equal(t, one, w.get("one"))
		_, err = first.GetVolumeSnapshot(t.Context(), one.Status.VolumeSnapshotID)
		require.NoError(t, err)

		_, err = w.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: one.Spec, Rebuild: true})
		require.NoError(t, err)
		require.Equal(t, "second", w.await("one", imagesnapshot.PhaseAvailable).Status.Driver)
		requireEmpty(t, first)
		w.delete("one")
		w.delete("two")
		w.awaitGone("one")
		w.awaitGone("two")
		requireEmpty(t, second)
	}, named("first"))
}

// An update that is under way when the driver changes ends in the storage in which it began.
func TestDriverChangesDuringBuild(t *testing.T) {
	newWorld(t, func(w *world) {
		first := w.fake
		w.create("one", spec(refA))
		w.settle(10 * time.Second)
		require.Equal(t, imagesnapshot.StepBuild, w.get("one").Status.Work.Step)
		w.stop()
		w.others = map[string]lifecycle.Backend{"first": backendOf(first)}
		w.cfg.Driver, w.fake = "second", blockdevtest.NewFake(0)
		w.start(0, false)
		require.Equal(t, "first", w.await("one", imagesnapshot.PhaseAvailable).Status.Driver)
		requireEmpty(t, w.fake)
		w.delete("one")
		w.awaitGone("one")
		requireEmpty(t, first)
	}, named("first"))
}

// What is from before there was a choice is in the storage of the driver that was the only one.
func TestUnnamedDriver(t *testing.T) {
	newWorld(t, func(w *world) {
		first := w.fake
		w.create("one", spec(refA))
		require.Empty(t, w.await("one", imagesnapshot.PhaseAvailable).Status.Driver)
		w.cfg.LegacyDriver, w.cfg.Driver = "first", "first"
		w.moveTo("second", blockdevtest.NewFake(0))
		w.settle(15 * time.Minute)
		require.Equal(t, imagesnapshot.PhaseAvailable, w.get("one").Status.Phase, "a sweep looks for it where it is")
		w.delete("one")
		w.awaitGone("one")
		requireEmpty(t, first)
	})
}

// An image snapshot whose driver is not configured any more stays as it is; its deletion says what holds it, once, and
// ends when the driver is back.
func TestDriverNotConfigured(t *testing.T) {
	newWorld(t, func(w *world) {
		first := w.fake
		w.create("one", spec(refA))
		before := w.await("one", imagesnapshot.PhaseAvailable)
		w.moveTo("second", blockdevtest.NewFake(0))
		w.stop()
		w.others = nil
		w.start(0, false)
		w.settle(15 * time.Minute)
		require.Equal(t, before, w.get("one"))

		w.delete("one")
		w.settle(time.Hour)
		held := w.get("one")
		require.Equal(t, imagesnapshot.PhaseDeleting, held.Status.Phase)
		require.Contains(t, held.Status.Message, `driver "first", which is not configured here`)
		last := held.Status.Events[len(held.Status.Events)-1]
		require.Equal(t, held.Status.Message, last.Message)
		require.EqualValues(t, 1, last.Count, "it is tried often and told once")

		w.stop()
		w.others = map[string]lifecycle.Backend{"first": backendOf(first)}
		w.start(0, false)
		w.awaitGone("one")
		requireEmpty(t, first)
	}, named("first"))
}

// Storage that cannot keep image snapshots is refused before anything is made; one that is not there yet is waited for.
func TestStorageIsChecked(t *testing.T) {
	var errs []error
	newWorld(t, func(w *world) {
		errs = []error{fmt.Errorf("it has no volume snapshots: %w", blockdev.ErrUnsupported)}
		w.create("never", spec(refA))
		never := w.await("never", imagesnapshot.PhaseFailed)
		require.Equal(t, imagesnapshot.ReasonStorageFailed, never.Status.Reason)
		require.Contains(t, never.Status.Message, "it has no volume snapshots")
		require.Zero(t, w.builder.plans)
		requireEmpty(t, w.fake)

		errs = []error{blockdev.ErrThrottled, blockdev.ErrThrottled}
		w.create("later", spec(refA))
		later := w.await("later", imagesnapshot.PhaseAvailable)
		require.Equal(t, 1, later.Status.Builds)
		require.Empty(t, errs)
	}, func(w *world) {
		w.shape = func(b lifecycle.Backend) lifecycle.Backend {
			b.Check = func(context.Context) error {
				if len(errs) == 0 {
					return nil
				}
				err := errs[0]
				errs = errs[1:]
				return err
			}
			return b
		}
	})
}

// asked notes what volumes were asked for, and changes what a test wants changed.
type asked struct {
	blockdev.Provisioner
	requests []blockdev.CreateVolumeRequest
	// change a request, or refuse it.
	change func(*blockdev.CreateVolumeRequest) error
	// remove comes before a deletion.
	remove func(id string) error
}

func (a *asked) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	a.requests = append(a.requests, req)
	if a.change != nil {
		if err := a.change(&req); err != nil {
			return blockdev.Volume{}, err
		}
	}
	return a.Provisioner.CreateVolume(ctx, req)
}

func (a *asked) DeleteVolume(ctx context.Context, id string) error {
	if a.remove != nil {
		if err := a.remove(id); err != nil {
			return err
		}
	}
	return a.Provisioner.DeleteVolume(ctx, id)
}

// between puts a between the engine and its storage.
func between(a *asked) func(*world) {
	return func(w *world) {
		w.shape = func(b lifecycle.Backend) lifecycle.Backend {
			a.Provisioner, b.Provisioner = b.Provisioner, a
			return b
		}
	}
}

// C-41 to C-43: parameters of the backend are kept and returned; those that the storage takes go to it, of the others
// an event says that they had no effect.
func TestParameters(t *testing.T) {
	a := &asked{}
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.Build.Parameters = map[string]string{"x/type": "fast", "eipID": "eip-1", "autoCreateEIP": "true"}
		w.create("one", sp)
		one := w.await("one", imagesnapshot.PhaseAvailable)
		require.Equal(t, sp.Build.Parameters, one.Spec.Build.Parameters)
		require.Equal(t, map[string]string{"type": "fast"}, a.requests[0].Parameters)
		i := slices.Index(reasons(one), imagesnapshot.ReasonParametersIgnored)
		require.Positive(t, i)
		e := one.Status.Events[i]
		require.Equal(t, imagesnapshot.EventWarning, e.Type)
		require.EqualValues(t, 1, e.Count)
		require.True(t, strings.HasSuffix(e.Message, ": autoCreateEIP, eipID"), e.Message)
		require.NotContains(t, e.Message, "eip-1", "values may be nobody's business")

		delete(sp.Build.Parameters, "eipID")
		delete(sp.Build.Parameters, "autoCreateEIP")
		w.create("two", sp)
		require.NotContains(t, reasons(w.await("two", imagesnapshot.PhaseAvailable)), imagesnapshot.ReasonParametersIgnored)
	}, between(a), func(w *world) {
		inner := w.shape
		w.shape = func(b lifecycle.Backend) lifecycle.Backend {
			b.TakeParameters = takePrefixed
			return inner(b)
		}
	})
}

// takePrefixed takes what begins with x/.
func takePrefixed(p map[string]string) (taken map[string]string, ignored []string) {
	taken = map[string]string{}
	for k, v := range p {
		if name, ok := strings.CutPrefix(k, "x/"); ok {
			taken[name] = v
		} else {
			ignored = append(ignored, k)
		}
	}
	return taken, ignored
}

// Storage without parameters of its own takes none.
func TestParametersOfEmbeddedStorage(t *testing.T) {
	newWorld(t, func(w *world) {
		sp := spec(refA)
		sp.Build.Parameters = map[string]string{"subnetID": "s"}
		w.create("one", sp)
		require.Contains(t, reasons(w.await("one", imagesnapshot.PhaseAvailable)), imagesnapshot.ReasonParametersIgnored)
	})
}

// E-22 in storage that makes volumes larger than they were asked for: a disk of the same size as wanted is a base all
// the same, and the volume of it is asked for as large as the volume snapshot.
func TestReuseInStorageThatRoundsUp(t *testing.T) {
	const gib = 1 << 30
	a := &asked{change: func(req *blockdev.CreateVolumeRequest) error {
		req.SizeBytes = max(req.SizeBytes, 32*gib)
		return nil
	}}
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		require.EqualValues(t, 20*gib, w.await("one", imagesnapshot.PhaseAvailable).Status.VolumeBytes)
		sp := spec(refAB)
		sp.ReuseLayers = true
		w.create("two", sp)
		two := w.await("two", imagesnapshot.PhaseAvailable)
		require.Equal(t, "one", two.Status.BaseName)
		require.EqualValues(t, 20*gib, two.Status.VolumeBytes)
		require.EqualValues(t, 20*gib, a.requests[0].SizeBytes)
		require.EqualValues(t, 32*gib, a.requests[1].SizeBytes)
	}, between(a))
}

// Storage that makes no volume of the base, for whatever reason, gets to make a blank one.
func TestBaseIsRefused(t *testing.T) {
	for _, class := range []error{blockdev.ErrNotFound, blockdev.ErrInvalid, blockdev.ErrUnsupported} {
		a := &asked{change: func(req *blockdev.CreateVolumeRequest) error {
			if req.SourceVolumeSnapshotID != "" {
				return class
			}
			return nil
		}}
		newWorld(t, func(w *world) {
			w.create("one", spec(refA))
			w.await("one", imagesnapshot.PhaseAvailable)
			sp := spec(refAB)
			sp.ReuseLayers = true
			w.create("two", sp)
			two := w.await("two", imagesnapshot.PhaseAvailable)
			require.Empty(t, two.Status.BaseName)
			require.Contains(t, reasons(two), imagesnapshot.ReasonRetrying)
			w.requireStorage(w.get("one"), two)
		}, between(a))
	}
}

// Some storage (Cinder with most of its backends) keeps a volume for as long as it has volume snapshots. The volume of
// the build then stays, and goes with the image snapshot.
func TestVolumeThatStaysWithItsSnapshots(t *testing.T) {
	a, refused := &asked{}, 0
	newWorld(t, func(w *world) {
		a.remove = func(id string) error {
			list, err := w.fake.ListVolumeSnapshots(t.Context())
			if slices.ContainsFunc(list, func(v blockdev.VolumeSnapshot) bool { return v.SourceVolumeID == id }) {
				refused++
				err = errors.Join(err, fmt.Errorf("volume has dependent snapshots: %w", blockdev.ErrInUse))
			}
			return err
		}
		w.create("one", spec(refA))
		w.settle(time.Hour)
		one := w.get("one")
		require.Equal(t, imagesnapshot.PhaseAvailable, one.Status.Phase, "usable all the same")
		require.Equal(t, imagesnapshot.StepCleanup, one.Status.Work.Step)
		require.Positive(t, refused)
		refused = 0
		w.delete("one")
		w.awaitGone("one")
		require.Zero(t, refused, "the volume snapshot goes first")
		requireEmpty(t, w.fake)
	}, between(a))
}

// deaf is storage that cannot be asked what it has.
type deaf struct{ blockdev.VolumeSnapshotter }

func (deaf) ListVolumeSnapshots(context.Context) ([]blockdev.VolumeSnapshot, error) {
	return nil, fmt.Errorf("no answer: %w", blockdev.ErrFailed)
}

// A driver that cannot be asked does not keep the others from being swept, and nothing of its own is taken for lost.
func TestSweepGoesOnWithoutADriver(t *testing.T) {
	newWorld(t, func(w *world) {
		w.create("one", spec(refA))
		one := w.await("one", imagesnapshot.PhaseAvailable)
		prefix := one.Status.VolumeSnapshotName[:len("berth-000000000000-")]
		first, second := w.fake, blockdevtest.NewFake(0)
		w.moveTo("second", second)
		w.stop()
		b := backendOf(first)
		b.Snapshotter = deaf{b.Snapshotter}
		w.others = map[string]lifecycle.Backend{"first": b}
		orphan, err := second.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: prefix + "v-0123456789abcdef0123456789abcdef-1", SizeBytes: 4096})
		require.NoError(t, err)
		w.start(0, false)
		w.settle(time.Minute)
		_, err = second.GetVolume(t.Context(), orphan.ID)
		require.True(t, errdefs.IsNotFound(err), "%v", err)
		_, err = w.engine.Sweep(t.Context(), true)
		require.ErrorContains(t, err, "look through the storage of driver first: no answer")
		require.Equal(t, one, w.get("one"))
	}, named("first"))
}
